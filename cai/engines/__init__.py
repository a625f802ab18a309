"""Who answers: engines that generate text and weigh options, and the memo that remembers them."""
