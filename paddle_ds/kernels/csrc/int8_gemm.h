// u8 x s8 -> s32 matrix products on the oneDNN that Paddle ships, with weights packed once.
//
// Without VNNI or AMX oneDNN adds pairs of products in 16 bits, which saturates for full-range values. There our own exact loop
// runs instead: slower, and right. It also runs for layers whose outputs do not fill oneDNN's groups of columns, see int8_gemm.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace pds {

// Memory for packed weights: 2 MB aligned and advised for huge pages, so that streaming through it costs few page walks.
class PackedBytes {
 public:
  explicit PackedBytes(size_t bytes);
  ~PackedBytes();
  PackedBytes(const PackedBytes&) = delete;
  PackedBytes& operator=(const PackedBytes&) = delete;
  void* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  void* data_;
  size_t bytes_;
};

// acc[m][n] = sum_k a[m][k] * w[n][k]: exact. Rows are computed in batches of fixed sizes; callers give room for padded_rows(m).
class Int8Gemm {
 public:
  // Room for a weight of n rows; pack_rows() fills it, finish() comes last.
  Int8Gemm(int64_t n, int64_t k);
  // Over weights and zero points that the caller keeps, packed as packed_products.h wants them: ready to run.
  Int8Gemm(int64_t n, int64_t k, const int8_t* packed, const int32_t* zero_point);
  ~Int8Gemm();

  // Rows first .. first + count of the weight, [count][k]; not needed afterwards. `first` is a multiple of kPackedColumns.
  void pack_rows(const int8_t* weight, int64_t first, int64_t count);
  void finish();

  // `a` holds padded_rows(m) rows of k bytes (what stands in the rows beyond m does not matter), `acc` as many of n.
  void run(const uint8_t* a, int64_t m, int32_t* acc) const;

  // 128 * sum_k w[n][k]: what the unsigned shift of the activations adds to each column.
  const int32_t* zero_point() const;
  int64_t n() const;
  int64_t k() const;
  size_t packed_bytes() const;
  // what runs: vnni:avx512 (vnni_products.h), oneDNN's own name such as brg_matmul:avx512_core_vnni, or own:avx2
  std::string implementation() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// oneDNN packs columns of the product, which are rows of the weight, in groups of so many.
constexpr int64_t kPackedColumns = 64;

// The next size for which a primitive exists: every size up to 4, then steps that waste at most a quarter.
int64_t padded_rows(int64_t rows);

}  // namespace pds
