// What example.cc uses of Paddle's C++ inference interface, declared by hand: the wheel has the library and not the header.
//
// Names and types are those of the documented interface, so that the functions in libpaddle.so are found. Objects are made and
// looked into there only: the configuration is room that is large enough, and a tensor is never destroyed, which leaks its name.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace paddle {

struct AnalysisConfig {
  AnalysisConfig();
  AnalysisConfig(const AnalysisConfig&);
  void SetModel(const std::string& program, const std::string& parameters);
  void DisableGlogInfo();
  void DisableMKLDNN();
  void DeletePass(const std::string& name);
  void SetCpuMathLibraryNumThreads(int count);
  void EnableNewExecutor(bool x = true);
  void EnableNewIR(bool x = true);
  void EnableMemoryOptim(bool x = true);

 private:
  alignas(std::max_align_t) char room_[1 << 16];
};

}  // namespace paddle

namespace paddle_infer {

using Config = paddle::AnalysisConfig;
enum class PlaceType { kUNK = -1, kCPU };
enum class DataLayout { kUNK = -1, kAny, kNHWC, kNCHW };

class Tensor {
 public:
  Tensor() = delete;
  ~Tensor() {}
  static void operator delete(void*) {}
  void Reshape(const std::vector<int>& shape);
  template <typename T>
  void CopyFromCpu(const T* data);
  template <typename T>
  void CopyToCpu(T* data) const;
  template <typename T>
  void ShareExternalData(const T* data, const std::vector<int>& shape, PlaceType place, DataLayout layout = DataLayout::kNCHW);
};

class Predictor {
 public:
  Predictor() = delete;
  std::vector<std::string> GetOutputNames();
  std::unique_ptr<Tensor> GetInputHandle(const std::string& name);
  std::unique_ptr<Tensor> GetOutputHandle(const std::string& name);
  bool Run();
};

std::shared_ptr<Predictor> CreatePredictor(const Config& config);

}  // namespace paddle_infer
