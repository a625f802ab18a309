import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cai.constitution.principles import Principle
from cai.constitution.sandbox import Template
from cai.constitution.template_limits import MAX_OUTPUT, TemplateFault

VARIABLES: dict[str, Any] = {
    "principle": {"id": "kind", "critique": "What is unkind?", "judge": "Which is kinder?"},
    "round": 2,
    "prompt": "Why do\ncats purr?",
    "critique": None,
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
    "responses": {"A": "They are content.", "B": "Nobody  knows."},
    "cot": False,
}
watching: list[set[str]] = []
sys.addaudithook(lambda event, args: watching[-1].add(event) if watching else None)  # for good: none can be removed


@contextmanager
def nothing_is_run() -> Iterator[None]:
    """Fails when Python meanwhile opens, imports, compiles or starts anything."""
    watching.append(set())
    try:
        yield
    finally:
        events = watching.pop()
    assert events <= {"sys._getframe", "object.__getattr__", "builtins.id"}


def outcome(source: str, variables: dict[str, Any] = VARIABLES) -> str | TemplateFault:
    try:
        template = Template(source, variables)
        with nothing_is_run():
            return template.render(variables)
    except TemplateFault as fault:
        return fault


def as_jinja(source: str) -> str:
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(VARIABLES).strip()


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}\n{{ m.role | capitalize }}: {{ m.content }}\n\n{% endfor %}",
        "{% for letter, text in responses.items() %}{{ loop.index }} {{ letter }}: {{ text }}{{ loop.last }}{% endfor %}",
        "{{ responses | length }} {{ responses | join(' or ') }} {{ responses.get('C', 'none') }} {{ responses['A'][:4] }}",
        "{% if critique is none and round > 1 or cot %}{{ -round ** 2 }}{% elif cot %}x{% else %}{{ prompt }}{% endif %}",
        "{% set x %}a {{ round }}{% endset %}{% set y, z = 1, 'b' %}{{ x ~ y ~ z }}{% with w = x %}{{ w | upper }}{% endwith %}",
        "{{ messages | map(attribute='content') | map('lower') | join(' / ') }} {{ messages[-1].content.strip('?') }}",
        "{{ messages | selectattr('role', 'eq', 'user') | map(attribute='role') | list }} {{ [3, 1] | sort(reverse=true) }}",
        "{{ principle.nothing | default('d') }} {{ principle.id is defined }} {{ principle.nothing is undefined }}",
        "{{ prompt | indent(2) }} {{ prompt | replace('cats', 'dogs') }} {{ prompt.split() }} {{ 2.345 | round(1) }}",
        "{% for x in [1, 2, 3] if x is odd %}{{ x }}{{ ', ' if not loop.last }}{% else %}none{% endfor %}{{ {'a': (1, 2)} }}",
        "{% for x in range(1, 9, 3) %}{% for y in 'ab' %}{{ x * 2 }}{{ y * x }} {% endfor %}{% endfor %}{# comment #}",
        "{% raw %}{{ verbatim }}{% endraw %} {{ 7 // 2 }} {{ 7 % 4 }} {{ 1 < round <= 2 }} {{ 'cat' in prompt }} {{ 1.5 }}",
        "{% block b %}{{ prompt | truncate(9) }}{% endblock %} {{ responses | dictsort }} {{ ['b', 'a'] | unique | max }}",
    ],
)
def test_allowed_templates_render_as_jinja_renders_them(source: str) -> None:
    assert outcome(source) == as_jinja(source)


expressions = st.recursive(
    st.sampled_from(
        [
            *("principle.id", "round", "prompt", "messages[0].content", "messages | length", "responses.A", "'x'", "3"),
            *("responses['B']", "cot", "critique", "2.5", "messages | map(attribute='role') | join(',')", "true", "-1"),
            *("principle.nothing", "loop.index", "item", "prompt.splitlines()", "responses", "messages", "[1, 'a']"),
        ]
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or"]), inner).map(
            lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
        ),
        st.tuples(inner, st.sampled_from(["upper", "length", "list", "first", "int", "default(1)", "sort", "string"])).map(
            " | ".join
        ).map("({})".format),
        st.tuples(inner, inner, inner).map(lambda parts: f"({parts[0]} if {parts[1]} else {parts[2]})"),
        inner.map("(not {})".format),
        st.tuples(inner, inner).map(lambda parts: f"[{parts[0]}, {parts[1]}]"),
    ),
    max_leaves=6,
)  # fmt: skip
templates = st.recursive(
    st.one_of(expressions.map("{{{{ {} }}}}".format), st.sampled_from(["text", "\n  ", "{% set item = 1 %}"])),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.tuples(expressions, inner, inner).map("{{% if {0[0]} %}}{0[1]}{{% else %}}{0[2]}{{% endif %}}".format),
        st.tuples(expressions, inner).map("{{% for item in {0[0]} %}}{0[1]}{{% endfor %}}".format),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(templates)
def test_whatever_renders_is_what_jinja_renders(source: str) -> None:
    text = outcome("{% if false %}{% set item = 0 %}{% endif %}" + source)
    if isinstance(text, str):
        assert text == as_jinja("{% if false %}{% set item = 0 %}{% endif %}" + source)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''['__cla' ~ 'ss__'] }}",
    r"{{ ''['\x5f\x5fclass\x5f\x5f'] }}",
    r"{{ '' | attr('\u005f\u005fclass\u005f\u005f') }}",
    "{{ '' | attr('__class__') }}",
    "{{ ['']|map('attr', '__class__')|list }}",
    "{{ [prompt] | map(attribute='__class__') | list }}",
    "{{ [prompt] | map(attribute='upper') | list }}",
    "{{ [prompt, prompt] | sort(attribute='__class__') }}",
    "{{ [prompt, prompt] | groupby('__class__') }}",
    "{{ [prompt] | selectattr('__class__') | list }}",
    "{{ [prompt] | sum(attribute='__class__.__mro__') }}",
    "{{ [prompt] | unique(attribute='__class__') | list }}",
    "{{ [prompt] | join(attribute='__class__') }}",
    "{{ [prompt] | map('metered method', 'format') | list }}",
    "{{ [prompt] | map('metered value') | list }}",
    "{{ prompt | map('string') | map('tojson') | map('safe') | list }}",
    "{{ '{0.__class__}'.format(prompt) }}",
    "{{ '{x.__class__.__init__.__globals__}'.format_map({'x': prompt}) }}",
    "{{ ['{0.__class__}'] | map('format', prompt) | list }}",
    "{{ '%s' | format(prompt.__class__) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(prompt) }}",
    "{{ prompt.format }}",
    "{{ prompt['format'] }}",
    "{{ prompt.upper }}",
    "{{ prompt.encode() }}",
    "{{ prompt.translate({}) }}",
    "{{ (1).from_bytes('a', 'big') }}",
    "{{ (1).__class__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ cycler('a').next() }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ lipsum() }}",
    "{{ dict.__base__ }}",
    "{{ range.__class__ }}",
    "{{ range }}",
    "{{ range(3).__class__ }}",
    "{% set range = prompt.upper %}{{ range() }}",
    "{{ self._TemplateReference__context }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self.question() }}",
    "{% block b %}{{ super.__init__ }}{{ super() }}{% endblock %}",
    "{% block b scoped %}{{ self }}{% endblock %}",
    "{% for x in messages %}{{ loop.__class__ }}{% endfor %}",
    "{% for x in messages %}{{ loop._iterable }}{% endfor %}",
    "{% for x in messages %}{{ loop['_iterator'] }}{% endfor %}",
    "{% for x in messages %}{{ loop(messages) }}{% endfor %}",
    "{% for x in messages %}{{ loop.changed.__func__ }}{% endfor %}",
    "{% for x in messages %}{{ loop.cycle.__globals__ }}{% endfor %}",
    "{% for x in messages %}{% set l = loop %}{{ l.__class__ }}{% endfor %}",
    "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% for loop in messages %}{{ loop }}{% endfor %}",
    "{% for x in messages recursive %}{{ x.role }}{% endfor %}",
    "{% set self = 1 %}{{ self }}",
    "{% set loop = 1 %}{{ loop }}",
    "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m.__class__ }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ caller }}{{ varargs }}{{ kwargs }}{{ context }}{{ environment }}{{ resolve }}{{ undefined }}",
    "{{ __builtins__ }}{{ __import__('os') }}",
    "{{ __builtins__['__import__']('os').system('touch PWNED') }}",
    "{{ request.application.__globals__ }}",
    "{{ config }}{{ get_flashed_messages.__globals__ }}{{ url_for.__globals__ }}",
    "{% set x = messages %}{% set x = x.append %}{{ x(1) }}",
    "{{ messages.append(1) }}{{ messages }}",
    "{{ messages.pop() }}{{ messages.clear() }}",
    "{{ principle.update({'id': 1}) }}{{ principle.setdefault('x', 1) }}",
    "{{ principle.items.__self__ }}",
    "{{ principle.__getitem__('id') }}",
    "{{ principle['__class__'] }}{{ principle.__class__ }}",
    "{{ principle.nothing.__class__ }}",
    "{{ (principle.nothing | default).__class__ }}",
    "{{ principle.nothing._undefined_message }}",
    "{{ [principle.nothing] }}",
    "{{ prompt | string | attr('join') }}",
    "{{ prompt | safe }}{{ prompt | e }}{{ prompt | escape | attr('__html__') }}",
    "{{ prompt | pprint }}{{ messages | random }}{{ messages | batch(1) | list }}",
    "{{ prompt.split(*messages) }}{{ prompt.split(**principle) }}",
    "{{ prompt.join.__self__ }}",
    "{% include 'judge' %}",
    "{% include '../../../etc/passwd' %}",
    "{% include prompt ignore missing %}",
    "{% import 'os' as os %}{{ os }}",
    "{% from 'os' import system %}{{ system('id') }}",
    "{% extends 'judge' %}",
    "{% extends prompt %}",
    "{% autoescape true %}{{ prompt }}{% endautoescape %}",
    "{% filter upper %}{{ prompt }}{% endfilter %}",
    "{% set x | upper %}{{ prompt }}{% endset %}",
    "{% do messages.append(1) %}",
    "{% debug %}",
    "{% trans %}x{% endtrans %}",
    "{{ prompt is callable }}{{ prompt is sameas prompt }}{{ 'os' is filter }}",
    "{{ [prompt] | select('callable') | list }}",
    "{{ [prompt] | map(5) | list }}{{ [prompt] | map(messages) | list }}",
    "{{ range(1, stop=2) }}",
    "{{ 'a'.split(context=1) }}{{ 'a'.split(value=1) }}",
    r"{{ '\ud800' }}",
    "{{ prompt.__class__ }}",
    "{{ ().__class__.__bases__[0] }}",
    "{{ [].__class__.__base__.__subclasses__()[40]('/etc/passwd').read() }}",
    "{{ true.__class__ }}{{ none.__class__ }}{{ (1.5).real.__class__ }}",
]


def harmless(text: str) -> bool:
    marks = (
        "<class",
        "<built-in",
        "<function",
        "<bound",
        "object at",
        "0x",
        "root:",
        "uid=",
        "Context",
        "Environment",
        "module",
    )
    return not any(mark in text for mark in marks)


@pytest.mark.parametrize("source", ESCAPES)
def test_known_ways_out_of_the_sandbox_are_errors_with_a_line(source: str) -> None:
    found = outcome("first line\n" + source)
    assert isinstance(found, TemplateFault)
    assert found.line == 2
    assert harmless(found.message)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_is_run_or_shown_by_combinations_of_known_ways(data: st.DataObject) -> None:
    names = st.sampled_from(
        [
            *(
                "__class__",
                "__init__",
                "__globals__",
                "__mro__",
                "__subclasses__",
                "__builtins__",
                "_iterable",
                "format",
            ),
            *("upper", "items", "append", "join", "split", "pop", "get", "index", "content", "id", "parse_raw", "mro"),
        ]
    )
    roots = st.sampled_from(
        ["''", "[]", "{}", "()", "1", "prompt", "messages", "principle", "self", "loop", "range", "cycler", "lipsum"]
    )
    step = st.one_of(
        names.map(".{}".format),
        names.map("['{}']".format),
        names.map(".{}()".format),
        names.map(" | attr('{}')".format),
        names.map(" | map(attribute='{}') | list".format),
        names.map(" | map('{}') | list".format),
        names.map(" | selectattr('{}') | list".format),
        names.map(" | sort(attribute='{}')".format),
        st.just("[0]"),
        st.just(" | first"),
    )
    chain = data.draw(roots)
    for link in data.draw(st.lists(step, min_size=1, max_size=4)):
        chain = f"({chain}{link})"
    form = data.draw(
        st.sampled_from(
            [
                "{{{{ {} }}}}",
                "{{% set x = {} %}}{{{{ x }}}}",
                "{{% for x in [{}] %}}{{{{ x }}}}{{{{ loop.index }}}}{{% endfor %}}",
            ]
        )
    )
    found = outcome(form.format(chain))
    assert harmless(found if isinstance(found, str) else found.message)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="{}%#()[]|.'\"\\~*-+ \nabx0_iforset", max_size=40), st.text(max_size=10))
def test_any_text_is_a_template_or_a_user_error(source: str, text: str) -> None:
    assert isinstance(outcome(source, {"x": text, "a": [text]}), str | TemplateFault)


BOMBS = [
    "{{ 'a' * 10 ** 10 }}",
    "{{ 10 ** 10 * 'a' }}",
    "{{ [0] * 10 ** 10 }}",
    "{{ '%1000000000s' % prompt }}",
    "{{ '%1000000000s' | format(prompt) }}",
    "{{ 'a'.center(10 ** 10) }}{{ 'a'.ljust(10 ** 10) }}{{ 'a'.zfill(10 ** 10) }}",
    "{{ 'a' | center(10 ** 10) }}",
    "{{ 'a\\tb'.expandtabs(10 ** 10) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ prompt | indent(10 ** 9) }}",
    "{{ prompt | indent('a' * 1000000) | indent('a' * 1000000) }}",
    "{{ [1] | batch(10 ** 9, 1) | list }}",
    "{{ [1] | slice(10 ** 9) | list }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ 2 ** 64 }}",
    "{{ 2.0 ** 64 ** 64 }}",
    "{{ 10 ** -(10 ** 9) }}",
    "{% set x = 10 ** 18 %}{{ x * x }}",
    "{{ 5 | round(-1000000000) }}",
    "{{ 5 | round(1000000000, 'ceil') }}",
    "{{ ('1' * 1000000) | int(base=2) }}",
    "{{ [[1]] * 100000 | sum(start=[]) }}",
    "{{ [1, 2] | tojson(indent=1000000000) }}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{% for i in range(10 ** 18) %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(999) %}{% for j in range(999) %}{% for k in 'abc' %}x{% endfor %}{% endfor %}{% endfor %}",
    "{% set s = 'a' * 400000 %}{% for c in s %}{% for d in s %}{% endfor %}{% endfor %}",
    "{% set e = '' %}{% for i in range(100000) %}" + "{{ e }}" * 5000 + "{% endfor %}",
    "{% set e = {'a': ''} %}{% for i in range(100000) %}" + "{{ e.a }}" * 5000 + "{% endfor %}",
    "{% for i in range(200000) %}a text of some length that is written many times{% endfor %}",
    "{% set s = 'a' * 400000 %}{% for i in range(100000) %}{% if s ~ 'b' in s %}{% endif %}{% endfor %}",
    "{% set s = 'a' * 400000 %}{% for i in range(100000) %}{% if s == s[:-1] %}{% endif %}{% endfor %}",
    "{% set s = 'a' * 400000 %}{{ s.strip('b' * 400000 ~ 'a') }}{{ s | trim('b' * 400000 ~ 'a') }}",
    "{% set s = 'a' * 400000 %}{{ s.replace('', s) }}",
    "{% set s = 'a' * 400000 %}{{ s | replace('a', s) }}",
    "{% set s = 'a' * 400000 %}{{ s.join(range(100000) | map('string')) }}",
    "{% set s = 'a' * 400000 %}{{ range(100000) | join(s) }}",
    "{% set s = 'a' * 400000 %}{{ range(100000) | map('replace', '', s) | list }}",
    "{% set s = 'a' * 400000 %}{{ range(100000) | map('string') | select('in', s) | list }}",
    "{% set s = 'a' * 400000 %}{{ [s] * 1000 | map('upper') | list }}",
    "{{ [messages] * 1000 | sort(attribute='" + "0," * 20000 + "0') }}",
    "".join("{% set x = " + ("x ~ x" if i else "'a' * 99") + " %}" for i in range(60)) + "{{ x }}",
    "".join("{% set x = " + ("x + x" if i else "'a' * 99") + " %}" for i in range(60)) + "{{ x }}",
    "".join("{% set x = " + ("[x, x]" if i else "'a'") + " %}" for i in range(60)) + "{{ x }}",
    "".join("{% set x = " + ("{'a': x, 'b': x}" if i else "'a'") + " %}" for i in range(60)) + "{{ x == x }}",
    "".join("{% set x = " + ("(x, x)" if i else "'a'") + " %}" for i in range(60)) + "{{ x | tojson }}",
    "{% set x = 'a' %}" + "{% set x = [x, x] %}" * 17 + "{{ [" + "x, " * 5000 + "] }}",
    "{% set x = 'a' * 99 %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60 + "{{ x }}",
    "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% block b %}{{ self.b() }}{% endblock %}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 500 + "]" * 500 + " }}",
    "{{ " + "not " * 5000 + "1 }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{{ 1" + " + 1" * 5000 + " }}",
    "{{ prompt" + ".a" * 5000 + " }}",
    "{{ " + "9" * 5000 + " }}",
    "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "{% for x in 'a' %}" * 30 + "{% endfor %}" * 30,
]


@pytest.mark.parametrize("source", BOMBS)
def test_work_and_output_are_bounded(source: str) -> None:
    started = time.process_time()
    found = outcome(source)
    assert isinstance(found, TemplateFault), found
    assert found.line == 1
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "source",
    [BOMBS[0], "{{ prompt | indent(10 ** 8) }}", *(bomb for bomb in BOMBS if "400000" in bomb and "range" not in bomb)],
)
def test_memory_is_bounded(source: str) -> None:
    tracemalloc.start()
    found = outcome(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(found, TemplateFault)
    assert peak < 100 * 2**20


def test_long_variables_raise_the_limits() -> None:
    long = "word " * MAX_OUTPUT
    source = "{{ x.upper() }}{{ x | trim }}{{ x.lower() | upper | length }}"
    assert outcome(source, {"x": long}) == f"{long.upper()}{long.strip()}{len(long)}"


@pytest.mark.parametrize(
    "value", [Principle(id="a", critique="c", revision="r", judge="j"), {"a": [str]}, b"bytes", {1, 2}, len, 1j]
)
def test_a_variable_that_is_not_plain_is_a_mistake_of_the_caller(value: object) -> None:
    with pytest.raises(TypeError, match="a template works on text, numbers, lists and dicts; found"):
        Template("{{ x }}", ["x"]).render({"x": value})


def test_errors_name_the_line_they_come_from() -> None:
    for source, line, message in [
        ("a\n{{ x / 0 }}", 2, "division by zero"),
        ("{{ x }} a\n{{ x }} b {{ x / 0 }} c\n{{ x }}", 2, "division by zero"),
        ("a\n\n{% for i in x %}{% endfor %}", 3, "expected a list to loop over, found a number"),
        ("{% if true %}\n{{ x + 'a' }}\n{% endif %}", 2, "'+' does not work on a number and text; join text with ~"),
        ("\n{{ y }}", 2, "unknown variable 'y'; this template sees x"),
        ("\n\n{{ old }}", 3, "unknown variable 'old'; it is named 'x' now"),
        ("{{ x.strip() }}", 1, "a number has no method 'strip'"),
        ("{{ {'a': 1}.b }}", 1, "a dict has no 'b'; it has a"),
        ("{{ {'a': 1}\n.b() }}", 2, "there is no method 'b' here; expected one of capitalize, count,"),
        ("a\n{{ x | nope }}", 2, "there is no filter 'nope' here; expected one of abs, base64,"),
        ("a\n{% if x is nope %}{% endif %}", 2, "there is no test 'nope' here; expected one of boolean, defined,"),
        ("a\n{{ " + "[" * 55 + "]" * 55 + " }}", 2, "nested too deeply"),
        ("a\n{{ " + "[" * 999 + "]" * 999 + " }}", 2, "nested too deeply"),
        ("a\n{% endif %}", 2, "not a valid template: Encountered unknown tag 'endif'"),
    ]:
        with pytest.raises(TemplateFault) as caught:
            Template(source, {"x"}, {"old": "x"}).render({"x": 1})
        assert (caught.value.line, caught.value.message[: len(message)]) == (line, message)
