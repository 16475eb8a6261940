/* λ from contributions and difficulties, Eq. 4, 5, 7 and 8: what weighting_visatb.py does, in the same order.
   Vectors are arrays with null where a unit is left out of a score; its weight by that score is 1. */
"use strict";

const LOWEST_TEMPERATURE = 0.1;
const WEIGHT_RANGE = [0.5, 2.0];

function scaledSoftmax(scores, temperature) {
  const there = scores.filter((score) => score !== null);
  const highest = Math.max(...there) / temperature;
  const powers = scores.map((score) => (score === null ? 0 : Math.exp(score / temperature - highest)));
  const total = powers.reduce((a, b) => a + b, 0);
  return scores.map((score, i) => (score === null ? 1 : (powers[i] / total) * there.length));
}

/* [λ_out, λ_in, λ_D] */
function weightComponents(cOut, cIn, difficulty, temperature) {
  const inward = cIn.map((value) => (value === null ? null : -value));
  return [cOut, inward, difficulty].map((scores) => scaledSoftmax(scores, temperature));
}

/* λ_VisATB for α = [out, in, difficulty], divided by its sum */
function visatbWeights(cOut, cIn, difficulty, temperature, alpha) {
  const sum = alpha[0] + alpha[1] + alpha[2];
  const parts = weightComponents(cOut, cIn, difficulty, temperature);
  return cOut.map((_, i) => parts.reduce((total, part, k) => total + (alpha[k] / sum) * part[i], 0));
}

/* The smallest T ≥ 0.1 such that all weights stay within [0.5, 2] for every T' ≥ T. */
function autoTemperature(cOut, cIn, difficulty, alpha) {
  const outside = (temperature) => {
    const weights = visatbWeights(cOut, cIn, difficulty, temperature, alpha);
    return Math.min(...weights) < WEIGHT_RANGE[0] || Math.max(...weights) > WEIGHT_RANGE[1];
  };
  let widest = LOWEST_TEMPERATURE;
  for (const scores of [cOut, cIn, difficulty]) {
    const there = scores.filter((score) => score !== null);
    if (there.length) widest = Math.max(widest, (Math.max(...there) - Math.min(...there)) / Math.LN2);
  }
  const steps = 500;
  const ratio = (widest * 1.001) / LOWEST_TEMPERATURE;
  const grid = (k) => LOWEST_TEMPERATURE * Math.pow(ratio, k / (steps - 1));
  let last = steps - 1;
  while (last >= 0 && !outside(grid(last))) last -= 1;
  if (last < 0) return LOWEST_TEMPERATURE;
  let low = grid(last);
  let high = grid(last + 1);
  for (let k = 0; k < 50; k += 1) {
    const middle = (low + high) / 2;
    if (outside(middle)) low = middle;
    else high = middle;
  }
  return high;
}

/* Moving one α scales the two others so that the three sum to 1. */
function moveAlpha(alpha, which, value) {
  const rest = 1 - alpha[which];
  return alpha.map((share, k) => {
    if (k === which) return value;
    return rest > 1e-9 ? (share / rest) * (1 - value) : (1 - value) / 2;
  });
}

/* How a guard's score would change against equal weights, were each task's effect in proportion to its λ. */
function guardShift(falls, weights) {
  return falls.reduce((sum, fall, i) => sum - (weights[i] - 1) * fall, 0);
}

if (typeof module !== "undefined") {
  module.exports = { weightComponents, visatbWeights, autoTemperature, moveAlpha, guardShift };
}
