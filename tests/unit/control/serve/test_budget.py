"""Who is refused when too much waits."""

from meshlib.control.serve.budget import MEBIBYTE, Budget, BudgetLimits

LIMITS = BudgetLimits(each=10 * MEBIBYTE, all=20 * MEBIBYTE)


class Refusals(dict[str, str]):
    """Why, by whom."""

    def hold(self, budget: Budget, who: str, caller: str, mebibytes: int) -> None:
        budget.holds(who, caller, mebibytes * MEBIBYTE, lambda why: self.update({who: why}))


def test_one_connection_that_holds_too_much_is_refused() -> None:
    budget, refused = Budget(LIMITS), Refusals()
    refused.hold(budget, "a", "x", 10)
    assert refused == {}
    refused.hold(budget, "a", "x", 11)
    assert refused == {"a": "this connection holds more than 10 MiB in messages that are not whole"}
    assert budget.held == 0


def test_of_all_together_the_largest_of_the_greediest_caller_is_refused() -> None:
    budget, refused = Budget(LIMITS), Refusals()
    refused.hold(budget, "large and alone", "honest", 6)
    for number in range(3):
        refused.hold(budget, f"of a crowd {number}", "greedy", 4 + number % 2)
    refused.hold(budget, "small", "other", 2)
    assert refused == {
        "of a crowd 1": "all connections together hold more than 20 MiB, and this caller most "
        "in messages that are not whole"
    }
    assert budget.held == 16 * MEBIBYTE


def test_what_is_handled_or_gone_counts_no_more() -> None:
    budget, refused = Budget(LIMITS), Refusals()
    for turn in range(10):
        refused.hold(budget, f"a{turn}", "x", 9)
        refused.hold(budget, f"a{turn}", "x", turn % 2)
        budget.gone(f"a{turn}")
    budget.gone("never there")
    assert (refused, budget.held) == ({}, 0)
