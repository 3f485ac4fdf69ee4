#include "candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "vector_kernels.h"

namespace pds {

namespace {

// Elements of one run whose largest is kept. A vocabulary of 152k has 2,400 runs, so that 1,024 candidates lie in few of them.
constexpr int64_t kRun = 64;
// Below this the reciprocal of a temperature is infinite; all but the largest have no weight long before.
constexpr float kLeastTemperature = 1e-30f;

struct Scratch {
  std::vector<float> peaks, sorted;
  std::vector<int64_t> ids;
};

Scratch& kept_scratch() {
  static thread_local Scratch kept;
  return kept;
}

// No more than the `count` largest runs can be left out: their largest elements alone are `count` elements of at least this.
float lower_bound(const float* logits, int64_t n, int64_t count, Scratch& s) {
  int64_t runs = (n + kRun - 1) / kRun;
  s.peaks.resize(runs);
  vector_kernels().block_peaks(logits, n, kRun, s.peaks.data());
  if (runs < count) return -std::numeric_limits<float>::infinity();
  s.sorted = s.peaks;
  std::nth_element(s.sorted.begin(), s.sorted.begin() + (count - 1), s.sorted.end(), std::greater<float>());
  return s.sorted[count - 1];
}

void collect(const float* logits, int64_t n, float bound, Scratch& s) {
  s.ids.clear();
  for (size_t run = 0; run < s.peaks.size(); ++run) {
    if (s.peaks[run] < bound) continue;
    int64_t first = static_cast<int64_t>(run) * kRun, last = std::min(first + kRun, n);
    for (int64_t i = first; i < last; ++i)
      if (logits[i] >= bound) s.ids.push_back(i);
  }
}

}  // namespace

void candidates(const float* logits, int64_t n, float temperature, int64_t count, int64_t* ids, float* values, double* total) {
  const VectorKernels& v = vector_kernels();
  int64_t best = v.argmax(logits, n);
  std::fill(ids, ids + count, -1);
  std::fill(values, values + count, -std::numeric_limits<float>::infinity());
  ids[0] = best;
  values[0] = logits[best];
  *total = 1.0;
  if (temperature == 0.0f || !std::isfinite(logits[best])) return;
  *total = v.exp_sum(logits, n, logits[best], 1.0f / std::max(temperature, kLeastTemperature));
  if (count == 1) return;
  Scratch& s = kept_scratch();
  collect(logits, n, lower_bound(logits, n, count, s), s);
  auto before = [logits](int64_t a, int64_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  int64_t found = std::min<int64_t>(count, s.ids.size());
  std::partial_sort(s.ids.begin(), s.ids.begin() + found, s.ids.end(), before);
  for (int64_t i = 0; i < found; ++i) {
    ids[i] = s.ids[i];
    values[i] = logits[s.ids[i]];
  }
}

}  // namespace pds
