// The most likely next tokens of a row of logits.
#pragma once

#include <cstdint>

namespace pds {

// The `count` largest of n logits, by falling logit and, among equals, rising index.
//
// total = sum of exp((logit - largest) / temperature) over all n. At temperature 0 only the largest is looked for: the other
// places get index -1 and minus infinity, and total is 1. A row with a NaN gives it first and nothing else.
void candidates(const float* logits, int64_t n, float temperature, int64_t count, int64_t* ids, float* values, double* total);

}  // namespace pds
