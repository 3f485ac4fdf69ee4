"""The C++ host that is written beside a program: its source, with the figures of the model filled in."""

from __future__ import annotations

import string
from typing import Any

_SOURCE = r"""/* Continue token ids, one by one, with the program in a directory: example DIRECTORY MAX_TOKENS ID [ID ...]

With Paddle's C++ inference library of version $paddle, unpacked to $$PADDLE (https://www.paddlepaddle.org.cn/inference):

  g++ -O2 -std=c++17 example.cc -o example -I$$PADDLE/paddle/include -L$$PADDLE/paddle/lib -lpaddle_inference -ldl \
    -Wl,-rpath,$$PADDLE/paddle/lib:$$PADDLE/third_party/install/onednn/lib:$$PADDLE/third_party/install/mklml/lib

With the Python package in $$PADDLE instead (python -c 'import paddle; print(paddle.__path__[0])'): it has the library, but not
paddle_inference_api.h; $$HEADERS is paddle/fluid/inference/api of the same version's sources.

  g++ -O2 -std=c++17 example.cc -o example -I$$HEADERS $$PADDLE/base/libpaddle.so $$(python3-config --embed --ldflags) -ldl \
    -Wl,-rpath,$$PADDLE/base:$$PADDLE/libs -Wl,-rpath-link,$$PADDLE/libs
*/
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "paddle_inference_api.h"

namespace {

// The model, as export.json has it.
constexpr int kLayers = $layers, kKvHeads = $kv_heads, kHeadDim = $head_dim;
constexpr int64_t kVocabulary = $vocabulary, kMaxContextTokens = $max_context_tokens;
constexpr int64_t kNumTokens = $num_tokens;  // higher ids are padding
const std::vector<int64_t> kEndIds = {$end_ids};
constexpr int64_t kRow = int64_t{kKvHeads} * kHeadDim;

std::shared_ptr<paddle_infer::Predictor> load(const std::string& directory) {
  // The operators of the program: before the first predictor, and not closed again.
  const std::string library = "$library";
  if (!library.empty() && dlopen((directory + "/" + library).c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr)
    throw std::runtime_error(dlerror());
  paddle_infer::Config config;
  config.SetModel(directory + "/model.json", directory + "/model.pdiparams");
  config.DisableGlogInfo();
  config.SetCpuMathLibraryNumThreads(2);
  config.EnableNewExecutor();
  config.EnableNewIR();
  config.EnableMemoryOptim();  // after the two above: alone it fails on a program in this format
$settings  return paddle_infer::CreatePredictor(config);
}

// The program, and keys and values of one sequence, [layers][capacity][kv_heads][head_dim]: the predictor reads them in place.
class Sequence {
 public:
  Sequence(const std::string& directory, int64_t capacity)
      : predictor_(load(directory)),
        capacity_(capacity),
        keys_(kLayers * capacity * kRow),
        values_(kLayers * capacity * kRow),
        logits_($logits_rows * kVocabulary) {}

  // Appends tokens; the likeliest next one.
  int64_t step(const std::vector<int64_t>& token_ids) {
    const int tokens = static_cast<int>(token_ids.size());
    auto ids = predictor_->GetInputHandle("token_ids");
    ids->Reshape({tokens});
    ids->CopyFromCpu(token_ids.data());
    auto past = predictor_->GetInputHandle("past_length");
    past->Reshape({1});
    past->CopyFromCpu(&past_length_);
    share("past_keys", keys_);
    share("past_values", values_);
    if (!predictor_->Run()) throw std::runtime_error("the program cannot be run");
    const std::vector<std::string> outputs = predictor_->GetOutputNames();
    append(outputs[1], tokens, keys_);
    append(outputs[2], tokens, values_);
    past_length_ += tokens;
$fetch_logits    const float* first = logits_.data()$last_row;
    return std::max_element(first, first + kNumTokens) - first;
  }

 private:
  void share(const std::string& name, const std::vector<float>& rows) {
    predictor_->GetInputHandle(name)->ShareExternalData(rows.data(), {kLayers, static_cast<int>(capacity_), kKvHeads, kHeadDim},
                                                        paddle_infer::PlaceType::kCPU);
  }

  // The rows of the new tokens, [layers][tokens][kv_heads][head_dim], behind those that are there.
  void append(const std::string& name, int64_t tokens, std::vector<float>& rows) {
    std::vector<float> added(kLayers * tokens * kRow);
    predictor_->GetOutputHandle(name)->CopyToCpu(added.data());
    for (int64_t layer = 0; layer < kLayers; ++layer)
      std::copy_n(&added[layer * tokens * kRow], tokens * kRow, &rows[(layer * capacity_ + past_length_) * kRow]);
  }

  std::shared_ptr<paddle_infer::Predictor> predictor_;
  int64_t capacity_, past_length_ = 0;
  std::vector<float> keys_, values_, logits_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s DIRECTORY MAX_TOKENS ID [ID ...]\n", argv[0]);
    return 2;
  }
  try {
    std::vector<int64_t> new_ids;
    for (int i = 3; i < argc; ++i) new_ids.push_back(std::atoll(argv[i]));
    int64_t length = static_cast<int64_t>(new_ids.size());
    const int64_t capacity = std::min<int64_t>(length + std::atoll(argv[2]), kMaxContextTokens);
    Sequence sequence(argv[1], capacity);
    for (; length < capacity; ++length) {
      const int64_t best = sequence.step(new_ids);
      if (std::find(kEndIds.begin(), kEndIds.end(), best) != kEndIds.end()) break;
      std::printf("%lld ", static_cast<long long>(best));
      new_ids = {best};
    }
    std::printf("\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
"""


def source(report: dict[str, Any]) -> str:
    """The text of ``example.cc`` for a program that ``export.json`` describes so."""
    model, tokens, predictor = report["model"], report["tokens"], report["predictor"]
    settings = [] if predictor["onednn"] else ["config.DisableMKLDNN();"]
    settings += [f'config.DeletePass("{name}");' for name in predictor["delete_passes"]]
    all_logits = len(report["outputs"][0]["shape"]) == 2
    fetch = "predictor_->GetOutputHandle(outputs[0])->CopyToCpu(logits_.data());"
    return string.Template(_SOURCE).substitute(
        paddle=report["built_with"]["paddle"],
        layers=model["num_layers"],
        kv_heads=model["num_kv_heads"],
        head_dim=model["head_dim"],
        vocabulary=model["vocab_size"],
        max_context_tokens=model["max_context_tokens"],
        num_tokens=tokens["num_tokens"],
        end_ids=", ".join(map(str, tokens["eos_token_ids"])),
        library=report["library"] or "",
        settings="".join(f"  {line}\n" for line in settings),
        logits_rows="capacity" if all_logits else "1",
        fetch_logits=f"    {fetch}\n",
        last_row=" + (tokens - 1) * kVocabulary" if all_logits else "",
    )
