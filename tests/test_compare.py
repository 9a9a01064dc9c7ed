"""Verdicts on simulated models: right about as often as they should be, and practically never the wrong way round."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from lorasmith.errors import DataError
from lorasmith.evaluation.compare import _t_quantile, paired, rows_needed
from lorasmith.evaluation.label_metrics import single_label
from lorasmith.evaluation.metric import mean_of_rows, ratio_of_sums
from lorasmith.evaluation.scores import RowLoss
from lorasmith.evaluation.text_metrics import bleu, loss_and_perplexity

pytestmark = pytest.mark.usefixtures("no_network")

SIMULATIONS = 1000
IMBALANCED = [0.8, 0.15, 0.05]


def matches(rate):
    """Exact matches of two models that are right as often, each on rows of its own."""
    return lambda rows, rng: [mean_of_rows("exact_match", rng.random(rows) < rate) for _ in range(2)]


def heavy_losses(rows, rng):
    """Losses of a row vary much between rows, and between the models by noise without a variance."""
    tokens, common = rng.integers(1, 50, rows), rng.lognormal(0, 1.5, rows)
    return [ratio_of_sums("loss", tokens * (common + rng.standard_t(2, rows)), tokens, True) for _ in range(2)]


def skewed_losses(rows, rng):
    tokens, common = rng.integers(1, 50, rows), rng.gamma(1, 1, rows)
    return [ratio_of_sums("loss", tokens * common * rng.lognormal(0, 1.5, rows), tokens, True) for _ in range(2)]


def macro_f1(rows, rng):
    """Three labels of which the rarest has a row in twenty; both models know seven rows in ten."""
    gold = rng.choice(3, rows, p=IMBALANCED)
    guesses = [np.where(rng.random(rows) < 0.7, gold, rng.choice(3, rows, p=IMBALANCED)) for _ in range(2)]
    return [next(m for m in single_label(gold, one, "abc") if m.name == "f1_macro") for one in guesses]


NO_DIFFERENCE = {
    "rare matches": matches(0.05),
    "matches": matches(0.5),
    "frequent matches": matches(0.95),
    "heavy losses": heavy_losses,
    "skewed losses": skewed_losses,
    "macro F1": macro_f1,
}


def verdicts(made, rows, simulations=SIMULATIONS, resamples=500):
    """Shares of better and worse over simulated pairs of models."""
    rng = np.random.default_rng(rows)
    found = Counter(paired(*made(rows, rng), resamples=resamples).verdict for _ in range(simulations))
    return found["better"] / simulations, found["worse"] / simulations


@pytest.mark.parametrize("rows", [10, 20, 50])
@pytest.mark.parametrize("case", NO_DIFFERENCE)
def test_alike_models_are_seldom_called_better_on_few_rows(case, rows):
    better, worse = verdicts(NO_DIFFERENCE[case], rows)
    assert better <= 0.05
    assert worse <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("rows", [6, 100, 200, 1000])
@pytest.mark.parametrize("case", NO_DIFFERENCE)
def test_alike_models_are_seldom_called_better(case, rows):
    better, worse = verdicts(NO_DIFFERENCE[case], rows)
    assert better <= 0.05
    assert worse <= 0.05


@pytest.mark.parametrize("rows", [15, 60])
def test_a_true_difference_is_seen_about_as_often_as_it_should_be(rows):
    """A gain for which the t-test on so many rows has a power of 0.8."""
    gain = next(
        d for d in np.arange(0.1, 2, 0.001) if stats.nct.sf(stats.t.ppf(0.975, rows - 1), rows - 1, d * rows**0.5) > 0.8
    )

    def better_losses(rows, rng):
        common = rng.normal(3, 1, rows)
        return [mean_of_rows("loss", common, True), mean_of_rows("loss", common - rng.normal(gain, 1, rows), True)]

    better, worse = verdicts(better_losses, rows)
    assert better == pytest.approx(0.8, abs=0.06)
    assert worse <= 0.002


def test_better_matches_are_seen_as_often_as_by_mcnemars_test():
    """40 % against 60 % on 100 rows, known to differ in about half of them."""

    rng, ours, exact = np.random.default_rng(0), Counter(), Counter()
    for _ in range(SIMULATIONS):
        one, other = rng.random(100) < 0.4, rng.random(100) < 0.6
        gained, lost = int((other & ~one).sum()), int((one & ~other).sum())
        exact[stats.binomtest(gained, gained + lost).pvalue <= 0.05] += 1
        ours[paired(mean_of_rows("m", one), mean_of_rows("m", other), resamples=800).verdict] += 1
    assert abs(ours["better"] - exact[True]) <= 0.04 * SIMULATIONS
    assert ours["worse"] <= 0.002 * SIMULATIONS


@pytest.mark.parametrize(("rows", "gain"), [(40, 0.2), (12, 0.4)])
def test_as_many_rows_as_are_said_to_be_needed_show_the_difference_four_times_in_five(rows, gain):
    needed = rows_needed(gain, 1 / rows**0.5, rows)

    def gained(rows, rng):
        return [mean_of_rows("loss", np.zeros(rows)), mean_of_rows("loss", rng.normal(gain, 1, rows))]

    assert verdicts(gained, needed, resamples=500)[0] == pytest.approx(0.8, abs=0.05)


def test_rows_needed_are_those_of_the_textbook():
    # Cohen's d of 0.5 in a paired t-test: 34 rows.
    assert rows_needed(0.5, 1 / 10**0.5, 10) == 34
    assert rows_needed(0.0, 1.0, 10) is None
    assert rows_needed(1.0, 0.0, 3) == 6
    assert rows_needed(1.0, 0.4, 200) == 254
    assert rows_needed(1.0, float("inf"), 10) is None
    assert rows_needed(1.0, 0.1, 20) == 21


def test_the_interval_covers_the_truth_about_95_times_in_a_hundred():
    rng = np.random.default_rng(1)
    for rows in (10, 100):
        covered = 0
        for _ in range(600):
            gains = rng.normal(0.3, 1.0, rows)
            one = paired(mean_of_rows("loss", np.zeros(rows)), mean_of_rows("loss", gains), resamples=800)
            covered += one.low <= 0.3 <= one.high
        assert 0.925 <= covered / 600 <= 0.975


def test_the_t_quantile_is_that_of_scipy():
    for freedom in (5, 9, 30, 1000):
        assert _t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.001)


def test_one_model_against_itself_cannot_be_told_apart():
    same = mean_of_rows("exact_match", [1, 0, 1, 1, 0, 0, 1] * 5)
    found = paired(same, same)
    assert (found.verdict, found.delta, found.low, found.high, found.rows_needed) == ("cannot tell", 0, 0, 0, None)


def test_five_rows_tell_nothing_and_six_that_all_agree_do():
    for rows, verdict, needed in ((1, "cannot tell", 6), (5, "cannot tell", 6), (6, "better", None)):
        found = paired(mean_of_rows("exact_match", [0] * rows), mean_of_rows("exact_match", [1] * rows))
        assert (found.verdict, found.rows_needed) == (verdict, needed)
        assert found.low <= 1 <= found.high


def test_exchanged_models_have_the_opposite_verdict():
    rng = np.random.default_rng(0)
    one, other = rng.gamma(2, 1, 60), rng.gamma(2, 1, 60) * 0.5
    for lower, verdict in ((True, "better"), (False, "worse")):
        there = paired(mean_of_rows("loss", one, lower), mean_of_rows("loss", other, lower))
        back = paired(mean_of_rows("loss", other, lower), mean_of_rows("loss", one, lower))
        assert there.verdict == verdict
        assert back.verdict == {"better": "worse", "worse": "better"}[verdict]
        assert (back.delta, back.low, back.high) == pytest.approx((-there.delta, -there.high, -there.low))
        assert there == paired(mean_of_rows("loss", one, lower), mean_of_rows("loss", other, lower))


def test_rows_that_are_alike_are_drawn_together_to_the_same_interval():
    rng = np.random.default_rng(0)
    one, other = rng.random(300) < 0.5, rng.random(300) < 0.6
    together = paired(mean_of_rows("exact_match", one), mean_of_rows("exact_match", other))
    noise = rng.normal(0, 1e-9, 300)
    apart = paired(mean_of_rows("exact_match", one + noise), mean_of_rows("exact_match", other + noise))
    assert (together.low, together.high) == pytest.approx((apart.low, apart.high), abs=0.005)
    assert together.verdict == apart.verdict


def test_figures_of_the_whole_set_are_compared_as_well():
    rng = np.random.default_rng(0)
    words = np.array(["the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "run", "off"])
    wanted = [" ".join(rng.choice(words, 9)) for _ in range(60)]
    wrong, near = (
        [" ".join(w if rng.random() < kept else "x" for w in text.split()) for text in wanted] for kept in (0.6, 0.8)
    )
    found = paired(bleu(wrong, wanted)[0], bleu(near, wanted)[0], resamples=1000)
    assert found.verdict == "better"
    assert 0 < found.low < found.delta < found.high


@pytest.mark.filterwarnings("error")
def test_perplexities_beyond_all_bounds_are_compared_without_a_complaint():
    rng = np.random.default_rng(0)
    one, other = (loss_and_perplexity([RowLoss(nats, 1) for nats in rng.normal(800, 200, 8)])[1] for _ in range(2))
    found = paired(one, other)
    assert (found.verdict, found.rows_needed) == ("cannot tell", None)


def test_ten_thousand_rows_take_less_than_100_mb():
    rng = np.random.default_rng(0)
    one, other = (mean_of_rows("loss", rng.normal(size=10_000)) for _ in range(2))
    tracemalloc.start()
    paired(one, other)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(DataError, match=r"^loss of \(2, 2\) rows and sums cannot be compared with loss of \(1, 2\)\."):
        paired(mean_of_rows("loss", [1, 2]), mean_of_rows("loss", [1]))
    with pytest.raises(DataError, match=r"cannot be compared with f1 of"):
        paired(mean_of_rows("loss", [1]), mean_of_rows("f1", [1]))
