#include "int8_gemm.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

#include "onednn_abi.h"
#include "packed_products.h"
#include "vector_kernels.h"
#include "vnni_products.h"

namespace pds {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr uintptr_t kPage = 4096;
// The layout of packed weights is asked for at this many rows; it serves every other size too.
constexpr int64_t kLayoutRows = 16;

void check(int status, const char* what) {
  if (status != kDnnlSuccess)
    throw std::runtime_error(std::string("oneDNN: ") + what + " failed with status " + std::to_string(status));
}

struct Runtime {
  dnnl_engine_t engine = nullptr;
  dnnl_stream_t stream = nullptr;
  Runtime() {
    if (dnnl_version()->major != 3)
      throw std::runtime_error("oneDNN " + std::to_string(dnnl_version()->major) + " is loaded; version 3 is needed");
    check(dnnl_engine_create(&engine, kDnnlCpu, 0), "engine");
    check(dnnl_stream_create(&stream, engine, kDnnlStreamDefault), "stream");
  }
};

Runtime& runtime() {
  static Runtime shared;
  return shared;
}

// The C handles as owners.
struct Desc {
  dnnl_memory_desc_t handle = nullptr;
  Desc() = default;
  Desc(int64_t rows, int64_t columns, int type, int tag) {
    int64_t dims[12] = {rows, columns};
    check(dnnl_memory_desc_create_with_tag(&handle, 2, dims, type, tag), "memory description");
  }
  Desc(const Desc&) = delete;
  Desc& operator=(const Desc&) = delete;
  ~Desc() {
    if (handle != nullptr) dnnl_memory_desc_destroy(handle);
  }
};

struct Memory {
  dnnl_memory_t handle = nullptr;
  Memory(const dnnl_memory_desc* desc, void* data) {
    check(dnnl_memory_create(&handle, desc, runtime().engine, data), "memory");
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { dnnl_memory_destroy(handle); }
};

struct PrimitiveDesc {
  dnnl_primitive_desc_t handle = nullptr;
  PrimitiveDesc() = default;
  PrimitiveDesc(const PrimitiveDesc&) = delete;
  PrimitiveDesc& operator=(const PrimitiveDesc&) = delete;
  ~PrimitiveDesc() {
    if (handle != nullptr) dnnl_primitive_desc_destroy(handle);
  }
};

struct Primitive {
  dnnl_primitive_t handle = nullptr;
  explicit Primitive(const PrimitiveDesc& desc) { check(dnnl_primitive_create(&handle, desc.handle), "primitive"); }
  Primitive(const Primitive&) = delete;
  Primitive& operator=(const Primitive&) = delete;
  ~Primitive() { dnnl_primitive_destroy(handle); }
  void execute(std::initializer_list<dnnl_exec_arg_t> arguments) const {
    check(dnnl_primitive_execute(handle, runtime().stream, static_cast<int>(arguments.size()), arguments.begin()), "execution");
    check(dnnl_stream_wait(runtime().stream), "wait");
  }
};

// A product for one number of rows, with memory objects whose addresses are set for each call.
struct Product {
  Primitive primitive;
  Memory source, result;
  Product(const PrimitiveDesc& desc, int64_t m, int64_t n, int64_t k)
      : primitive(desc),
        source(Desc(m, k, kDnnlU8, kDnnlTagAb).handle, nullptr),
        result(Desc(m, n, kDnnlS32, kDnnlTagAb).handle, nullptr) {}
};

void describe(PrimitiveDesc& out, int64_t m, int64_t n, int64_t k, const dnnl_memory_desc* weights) {
  Desc source(m, k, kDnnlU8, kDnnlTagAb), result(m, n, kDnnlS32, kDnnlTagAb);
  check(dnnl_matmul_primitive_desc_create(&out.handle, runtime().engine, source.handle, weights, nullptr, result.handle, nullptr),
        "matmul description");
}

// Have the pages of a mapped file ready in one call instead of a fault for every few of them. Systems that do not know the advice
// (Linux before 5.14) fault as ever.
void populate(const void* data, size_t bytes) {
#ifdef MADV_POPULATE_READ
  uintptr_t first = reinterpret_cast<uintptr_t>(data) & ~(kPage - 1), last = reinterpret_cast<uintptr_t>(data) + bytes;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_POPULATE_READ);
#endif
}

}  // namespace

PackedBytes::PackedBytes(size_t bytes) : data_(nullptr), bytes_(bytes) {
  bool huge = bytes >= kHugePage;
  size_t alignment = huge ? kHugePage : 64;
  size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  data_ = std::aligned_alloc(alignment, rounded);
  if (data_ == nullptr) throw std::bad_alloc();
  if (huge) madvise(data_, rounded, MADV_HUGEPAGE);
}

PackedBytes::~PackedBytes() { std::free(data_); }

int64_t padded_rows(int64_t rows) {
  if (rows <= 4) return rows;
  int64_t step = 2;
  while (step * 8 < rows) step *= 2;
  return (rows + step - 1) / step * step;
}

struct Int8Gemm::State {
  int64_t n, k;
  Desc weight_desc;
  std::unique_ptr<PackedBytes> packed;
  std::unique_ptr<Memory> weight;
  std::vector<int32_t> zero_point;
  std::string implementation;
  bool plain = false;  // weights as they came, for our own loop
  const int8_t* borrowed = nullptr;  // of the caller, packed; then nothing here is owned
  const int32_t* borrowed_zero_point = nullptr;
  int64_t own_rows = 0;  // products of up to so many rows run on vnni_products
  std::mutex mutex;
  std::map<int64_t, std::unique_ptr<Product>> products;

  void run_vnni(const uint8_t* a, int64_t m, int32_t* acc) const {
    const auto* weights = static_cast<const int8_t*>(packed->data());
    const int64_t blocks = n / kPackedColumns;
#pragma omp parallel
    {
      // neighbouring blocks to one thread: what it fetches ahead is what it computes next
      const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
      vnni_products(a, m, weights, blocks * thread / threads, blocks * (thread + 1) / threads, n, k, acc);
    }
  }

  Product& product(int64_t m) {
    auto& slot = products[m];
    if (!slot) {
      PrimitiveDesc desc;
      describe(desc, m, n, k, weight_desc.handle);
      slot.reset(new Product(desc, m, n, k));
    }
    return *slot;
  }
};

Int8Gemm::Int8Gemm(int64_t n, int64_t k) : state_(new State{}) {
  State& s = *state_;
  s.n = n;
  s.k = k;
  s.zero_point.resize(n);
  PrimitiveDesc chosen;
  Desc any(k, n, kDnnlS8, kDnnlTagAny);
  describe(chosen, kLayoutRows, n, k, any.handle);
  const char* name = nullptr;
  check(dnnl_primitive_desc_query(chosen.handle, kDnnlQueryImplInfoStr, 0, &name), "implementation name");
  s.implementation = name;
  bool saturates = s.implementation.find("vnni") == std::string::npos && s.implementation.find("amx") == std::string::npos;
  // Where the last group of columns is not full, oneDNN 3.6.2 crashes for one row and many inputs on several threads (seen with
  // n=3, k=2048), so such layers run on our own loop. Models' sizes are multiples.
  s.plain = saturates || n % kPackedColumns != 0;
  if (s.plain) {
    s.implementation = std::string("own:") + vector_kernels().name;
    s.packed.reset(new PackedBytes(static_cast<size_t>(n) * k));
    return;
  }
  check(dnnl_memory_desc_clone(&s.weight_desc.handle, dnnl_primitive_desc_query_md(chosen.handle, kDnnlQueryWeightsMd, 0)),
        "weight description");
  s.packed.reset(new PackedBytes(dnnl_memory_desc_get_size(s.weight_desc.handle)));
  s.weight.reset(new Memory(s.weight_desc.handle, s.packed->data()));
}

Int8Gemm::Int8Gemm(int64_t n, int64_t k, const int8_t* packed, const int32_t* zero_point) : state_(new State{}) {
  state_->n = n;
  state_->k = k;
  state_->borrowed = packed;
  state_->borrowed_zero_point = zero_point;
}

void Int8Gemm::pack_rows(const int8_t* weight, int64_t first, int64_t count) {
  State& s = *state_;
  if (first < 0 || count < 1 || first + count > s.n || first % kPackedColumns != 0)
    throw std::invalid_argument("rows " + std::to_string(first) + " to " + std::to_string(first + count) + " of " +
                                std::to_string(s.n) + " cannot be packed by themselves");
  populate(weight, static_cast<size_t>(count) * s.k);
  if (s.plain) {
    std::memcpy(static_cast<int8_t*>(s.packed->data()) + first * s.k, weight, static_cast<size_t>(count) * s.k);
    return;
  }
  Desc source(s.k, count, kDnnlS8, kDnnlTagBa), target;
  int64_t dims[12] = {s.k, count}, offsets[12] = {0, first};
  check(dnnl_memory_desc_create_submemory(&target.handle, s.weight_desc.handle, dims, offsets), "description of packed rows");
  Memory from(source.handle, const_cast<int8_t*>(weight)), to(target.handle, s.packed->data());
  PrimitiveDesc reorder;
  check(dnnl_reorder_primitive_desc_create(&reorder.handle, source.handle, runtime().engine, target.handle, runtime().engine,
                                           nullptr),
        "reorder description");
  Primitive(reorder).execute({{kDnnlArgSrc, from.handle}, {kDnnlArgDst, to.handle}});
}

void Int8Gemm::finish() {
  // the product with a row of ones is the sum of each column
  State& s = *state_;
  std::vector<uint8_t> ones(s.k, 1);
  run(ones.data(), 1, s.zero_point.data());
  for (int32_t& sum : s.zero_point) sum *= 128;
  if (s.plain || s.k % kPackedColumns != 0 || !vnni_available()) return;
  // vnni_products takes the packed bytes for a layout that oneDNN does not promise: one product tells
  std::vector<uint8_t> row(s.k);
  uint32_t state = 1;
  for (uint8_t& value : row) value = static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
  std::vector<int32_t> theirs(s.n), ours(s.n);
  run(row.data(), 1, theirs.data());
  s.run_vnni(row.data(), 1, ours.data());
  if (ours != theirs) return;
  // tiles of AMX are faster for many rows
  bool tiles = s.implementation.find("amx") != std::string::npos;
  s.own_rows = tiles ? kLayoutRows : std::numeric_limits<int64_t>::max();
  s.implementation = tiles ? "vnni:avx512 and " + s.implementation : "vnni:avx512";
}

Int8Gemm::~Int8Gemm() = default;

void Int8Gemm::run(const uint8_t* a, int64_t m, int32_t* acc) const {
  if (m == 0) return;
  State& s = *state_;
  if (s.borrowed != nullptr) return packed_products(a, m, s.borrowed, s.n, s.k, acc);
  if (s.plain) {
    constexpr int64_t kColumns = 64;
#pragma omp parallel for
    for (int64_t first = 0; first < s.n; first += kColumns)
      vector_kernels().int8_columns(a, m, static_cast<const int8_t*>(s.packed->data()), first, std::min(first + kColumns, s.n),
                                    s.n, s.k, acc);
    return;
  }
  if (m <= s.own_rows) return s.run_vnni(a, m, acc);
  std::lock_guard<std::mutex> lock(s.mutex);  // the memory objects of a product are shared
  Product& product = s.product(padded_rows(m));
  check(dnnl_memory_set_data_handle(product.source.handle, const_cast<uint8_t*>(a)), "source");
  check(dnnl_memory_set_data_handle(product.result.handle, acc), "result");
  product.primitive.execute(
      {{kDnnlArgSrc, product.source.handle}, {kDnnlArgWeights, s.weight->handle}, {kDnnlArgDst, product.result.handle}});
}

const int32_t* Int8Gemm::zero_point() const {
  return state_->borrowed != nullptr ? state_->borrowed_zero_point : state_->zero_point.data();
}
int64_t Int8Gemm::n() const { return state_->n; }
int64_t Int8Gemm::k() const { return state_->k; }
size_t Int8Gemm::packed_bytes() const { return state_->packed->size(); }
std::string Int8Gemm::implementation() const { return state_->implementation; }

}  // namespace pds
