"""A mixed model of a study: does a condition change what faces show?

A template: copy it, and change what is said in capitals. It reads the events of all recordings,

    batchfer video study/ -o results --participants participants.csv --events stimuli.csv \
      --main-face longest
    python analysis.py results/events.csv

where participants.csv has the columns file, participant and condition. Without a table it simulates
a study whose effect is known, and finds it again. Needs pandas and statsmodels.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf

MEASURE = "mean_happy"  # or mean_valence, peak_happy, mean_happy_change, delta_happy, ...
CONDITION = "condition"  # a column of participants.csv
PARTICIPANT = "participant"  # another one; a person may have several recordings
STIMULUS = "name"  # of the event
SCALE = 100  # probabilities become percentage points; their variances would be near 0

LEAST_SECONDS = 1.0  # a trial with less time on screen is left out
MOST_UNCERTAIN = 0.5  # and one of which more of the time is uncertain


def read_trials(path: Path) -> pd.DataFrame:
    """Return the events of all recordings with a face, one row a trial."""
    trials = pd.read_csv(path)
    trials = trials[trials["person"].notna()]
    several = trials.duplicated(["file", STIMULUS]).sum()
    if several:
        print(f"{several} rows tell of further people in a trial: see --main-face")
    return trials


def exclude(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials that can be used, and print how many each rule leaves out."""
    rules = {
        f"on screen for less than {LEAST_SECONDS} s": trials["seconds_on_screen"] < LEAST_SECONDS,
        f"more than {MOST_UNCERTAIN:.0%} uncertain": trials["share_uncertain"] > MOST_UNCERTAIN,
        "a value is missing": trials[[MEASURE, CONDITION, PARTICIPANT]].isna().any(axis=1),
    }
    print(f"{len(trials)} trials")
    for rule, is_out in rules.items():
        print(f"  {is_out.sum()} left out: {rule}")
    return trials[~pd.DataFrame(rules).any(axis=1)]


def fit_model(trials: pd.DataFrame) -> pd.DataFrame:
    """Return estimates and 95 % intervals of the fixed effects, in units of `SCALE`.

    Participants and stimuli are crossed random effects: MEASURE ~ CONDITION + (1|PARTICIPANT) +
    (1|STIMULUS). The first condition in the alphabet is the one that others are compared with.
    """
    model = smf.mixedlm(
        f"measure ~ C({CONDITION})",
        trials.assign(measure=SCALE * trials[MEASURE]),
        groups=np.ones(len(trials)),
        vc_formula={
            "participant": f"0 + C({PARTICIPANT})",
            "stimulus": f"0 + C({STIMULUS})",
        },
    )
    fitted = model.fit(reml=True)
    intervals = fitted.conf_int()
    effects = pd.DataFrame(
        {
            "estimate": fitted.params,
            "lower": intervals[0],
            "upper": intervals[1],
            "p": fitted.pvalues,
        }
    )
    return effects.loc[fitted.fe_params.index]


def simulate_study(
    effect: float, n_participants: int = 24, n_stimuli: int = 6, seed: int = 0
) -> pd.DataFrame:
    """Return trials as `read_trials` does; each participant sees all stimuli in both conditions."""
    rng = np.random.default_rng(seed)
    of_participant = rng.normal(0, 0.08, n_participants)
    of_stimulus = rng.normal(0, 0.04, n_stimuli)
    rows = [
        {
            "file": f"p{participant:02}_{condition}.mp4",
            PARTICIPANT: f"p{participant:02}",
            CONDITION: condition,
            STIMULUS: f"film {stimulus}",
            "person": "P1",
            "seconds_on_screen": rng.uniform(4, 6),
            "share_uncertain": rng.beta(1, 9),
            MEASURE: 0.35
            + effect * (condition == "treated")
            + of_participant[participant]
            + of_stimulus[stimulus]
            + rng.normal(0, 0.08),
        }
        for participant in range(n_participants)
        for condition in ("control", "treated")
        for stimulus in range(n_stimuli)
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Fit the model to the table that is given, or to a simulated study."""
    if len(sys.argv) > 1:
        trials = read_trials(Path(sys.argv[1]))
    else:
        print("a simulated study in which the treatment adds 10 points")
        trials = simulate_study(effect=0.10)
    print(fit_model(exclude(trials)).round(3).to_string())


if __name__ == "__main__":
    main()
