# A mixed model of a study: does a condition change what faces show?
#
# A template: copy it, and change what is said in capitals. It reads the events of all recordings,
#
#   batchfer video study/ -o results --participants participants.csv --events stimuli.csv \
#     --main-face longest
#   Rscript analysis.R results/events.csv
#
# where participants.csv has the columns file, participant and condition. Without a table it
# simulates a study whose effect is known, and finds it again. Needs lme4.

library(lme4)

MEASURE <- "mean_happy"       # or mean_valence, peak_happy, mean_happy_change, delta_happy, ...
CONDITION <- "condition"      # a column of participants.csv
PARTICIPANT <- "participant"  # another one; a person may have several recordings
STIMULUS <- "name"            # of the event
SCALE <- 100                  # probabilities become percentage points

LEAST_SECONDS <- 1.0   # a trial with less time on screen is left out
MOST_UNCERTAIN <- 0.5  # and one of which more of the time is uncertain

read_trials <- function(path) {
  trials <- read.csv(path, na.strings = c("NA", ""))
  trials <- trials[!is.na(trials$person), ]
  several <- sum(duplicated(trials[c("file", STIMULUS)]))
  if (several > 0) cat(several, "rows tell of further people in a trial: see --main-face\n")
  trials
}

exclude <- function(trials) {
  short <- trials$seconds_on_screen < LEAST_SECONDS
  uncertain <- !is.na(trials$share_uncertain) & trials$share_uncertain > MOST_UNCERTAIN
  missing <- !complete.cases(trials[c(MEASURE, CONDITION, PARTICIPANT)])
  cat(nrow(trials), "trials; left out:", sum(short), "short,", sum(uncertain), "uncertain,",
      sum(missing), "with a missing value\n")
  trials[!(short | uncertain | missing), ]
}

# Participants and stimuli are crossed random effects. The first condition in the alphabet is the
# one that others are compared with.
fit_model <- function(trials) {
  formula <- as.formula(paste0(
    "measure ~ ", CONDITION, " + (1 | ", PARTICIPANT, ") + (1 | ", STIMULUS, ")"
  ))
  trials$measure <- SCALE * trials[[MEASURE]]
  fitted <- lmer(formula, data = trials)
  cbind(estimate = fixef(fitted), confint(fitted, parm = "beta_", method = "Wald"))
}

simulate_study <- function(effect, n_participants = 24, n_stimuli = 6, seed = 0) {
  set.seed(seed)
  of_participant <- rnorm(n_participants, 0, 0.08)
  of_stimulus <- rnorm(n_stimuli, 0, 0.04)
  trials <- expand.grid(
    stimulus = seq_len(n_stimuli), condition = c("control", "treated"),
    number = seq_len(n_participants), stringsAsFactors = FALSE
  )
  value <- 0.35 + effect * (trials$condition == "treated") + of_participant[trials$number] +
    of_stimulus[trials$stimulus] + rnorm(nrow(trials), 0, 0.08)
  study <- data.frame(
    file = paste0("p", trials$number, "_", trials$condition, ".mp4"),
    person = "P1",
    seconds_on_screen = runif(nrow(trials), 4, 6),
    share_uncertain = rbeta(nrow(trials), 1, 9)
  )
  study[[PARTICIPANT]] <- paste0("p", trials$number)
  study[[CONDITION]] <- trials$condition
  study[[STIMULUS]] <- paste("film", trials$stimulus)
  study[[MEASURE]] <- value
  study
}

paths <- commandArgs(trailingOnly = TRUE)
if (length(paths) > 0) {
  trials <- read_trials(paths[1])
} else {
  cat("a simulated study in which the treatment adds 10 points\n")
  trials <- simulate_study(effect = 0.10)
}
print(round(fit_model(exclude(trials)), 3))
