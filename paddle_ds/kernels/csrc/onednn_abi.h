// The part of oneDNN's C interface that is used here, declared by hand.
//
// Paddle ships the library (libdnnl.so.3) but not all of its headers, and the package that has them brings gigabytes of other
// run-time libraries along. The C interface is stable within major version 3, which is checked when the library is loaded.
// Reference: https://uxlfoundation.github.io/oneDNN/v3.6/dev_guide_c_and_cpp_apis.html
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

typedef struct dnnl_engine* dnnl_engine_t;
typedef struct dnnl_stream* dnnl_stream_t;
typedef struct dnnl_memory* dnnl_memory_t;
typedef struct dnnl_memory_desc* dnnl_memory_desc_t;
typedef struct dnnl_primitive* dnnl_primitive_t;
typedef struct dnnl_primitive_desc* dnnl_primitive_desc_t;
typedef struct dnnl_primitive_attr* dnnl_primitive_attr_t;

typedef struct {
  int arg;
  dnnl_memory_t memory;
} dnnl_exec_arg_t;

typedef struct {
  int major, minor, patch;
  const char* hash;
  unsigned cpu_runtime, gpu_runtime;
} dnnl_version_t;

// values of the enumerations, all passed as int
enum {
  kDnnlSuccess = 0,
  kDnnlCpu = 1,
  kDnnlStreamDefault = 1,
  kDnnlS32 = 4,
  kDnnlS8 = 5,
  kDnnlU8 = 6,
  kDnnlTagAny = 1,
  kDnnlTagAb = 3,
  kDnnlTagBa = 14,
  kDnnlArgSrc = 1,
  kDnnlArgDst = 17,
  kDnnlArgWeights = 33,
  kDnnlQueryImplInfoStr = 8,
  kDnnlQueryWeightsMd = 131,
};

const dnnl_version_t* dnnl_version(void);
int dnnl_engine_create(dnnl_engine_t* engine, int kind, size_t index);
int dnnl_stream_create(dnnl_stream_t* stream, dnnl_engine_t engine, unsigned flags);
int dnnl_stream_wait(dnnl_stream_t stream);
int dnnl_memory_desc_create_with_tag(dnnl_memory_desc_t* desc, int ndims, const int64_t dims[12], int type, int tag);
int dnnl_memory_desc_create_submemory(dnnl_memory_desc_t* desc, const dnnl_memory_desc* parent, const int64_t dims[12],
                                      const int64_t offsets[12]);
int dnnl_memory_desc_clone(dnnl_memory_desc_t* desc, const dnnl_memory_desc* existing);
int dnnl_memory_desc_destroy(dnnl_memory_desc_t desc);
size_t dnnl_memory_desc_get_size(const dnnl_memory_desc* desc);
int dnnl_memory_create(dnnl_memory_t* memory, const dnnl_memory_desc* desc, dnnl_engine_t engine, void* handle);
int dnnl_memory_set_data_handle(dnnl_memory_t memory, void* handle);
int dnnl_memory_destroy(dnnl_memory_t memory);
int dnnl_matmul_primitive_desc_create(dnnl_primitive_desc_t* desc, dnnl_engine_t engine, const dnnl_memory_desc* source,
                                      const dnnl_memory_desc* weights, const dnnl_memory_desc* bias,
                                      const dnnl_memory_desc* result, const dnnl_primitive_attr* attributes);
int dnnl_reorder_primitive_desc_create(dnnl_primitive_desc_t* desc, const dnnl_memory_desc* source, dnnl_engine_t source_engine,
                                       const dnnl_memory_desc* result, dnnl_engine_t result_engine,
                                       const dnnl_primitive_attr* attributes);
const dnnl_memory_desc* dnnl_primitive_desc_query_md(const dnnl_primitive_desc* desc, int what, int index);
int dnnl_primitive_desc_query(const dnnl_primitive_desc* desc, int what, int index, void* result);
int dnnl_primitive_desc_destroy(dnnl_primitive_desc_t desc);
int dnnl_primitive_create(dnnl_primitive_t* primitive, const dnnl_primitive_desc* desc);
int dnnl_primitive_execute(const dnnl_primitive* primitive, dnnl_stream_t stream, int count, const dnnl_exec_arg_t* arguments);
int dnnl_primitive_destroy(dnnl_primitive_t primitive);

}  // extern "C"
