// Paged attention of one tile, and what writes the cache. Included by vector_kernels.inc.cc.
//
// A tile's query vectors walk over the context in chunks of fixed borders (64, 128, ... tokens from the request's beginning). Each
// vector keeps its running maximum, the sum of its weights and its weighted values (online softmax, arXiv 1805.02867 and
// 2205.14135). A chunk that a vector cannot see changes none of its bits, so tiles may mix rows as they like.

// The tile's scratch, cut into arrays. Vectors are worked on in groups of PDS_TILE.
struct Tiled {
  const AttentionTile& t;
  int vectors;
  int64_t dim, stride;
  float *queries;        // [group][dim][vectors of the group], scaled
  float *scores;         // [vectors][kChunkTokens], then the weights
  float *sums;           // [vectors][stride]
  float *totals;         // [vectors][16]: sums of weights, lane by lane
  float *peaks;          // [vectors]
  float *keys, *values;  // the chunk in float32, where the cache holds something else
  float query_scale;

  explicit Tiled(const AttentionTile& tile)
      : t(tile), vectors(tile.rows * tile.group), dim(tile.head_dim), stride(padded_dim(tile.head_dim)) {
    float* next = tile.scratch;
    auto take = [&next](int64_t count) {
      float* taken = next;
      next += count;
      return taken;
    };
    scores = take(int64_t{kChunkTokens} * vectors);
    sums = take(stride * vectors);
    totals = take(int64_t{kBlockTokens} * vectors);
    keys = take(dim * kChunkTokens);
    values = take(stride * kChunkTokens);
    queries = take(dim * vectors);
    peaks = take(vectors);
    query_scale = 1.0f / std::sqrt(static_cast<float>(dim));
  }
  int64_t context(int v) const { return t.first_context + v / t.group; }
  int64_t longest() const { return t.first_context + t.rows - 1; }
  int64_t cache_row(int64_t block) const { return static_cast<int64_t>(t.block_table[block]) * t.num_kv_heads + t.kv_head; }
  // the offset of a vector in a row of heads
  int64_t offset(int v) const { return static_cast<int64_t>(t.kv_head * t.group + v % t.group) * dim; }
};

// Tokens `start .. start + count` of the context; key and value blocks in float32.
struct Chunk {
  int64_t start;
  int count, blocks;
  const float* keys[kChunkTokens / kBlockTokens];
  const float* values[kChunkTokens / kBlockTokens];
};

static void widen_bfloat16(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; i += kBlockTokens) store(to + i, widened(from + i));
}

static void widen_int8_keys(const int8_t* from, const float* scales, int64_t dim, float* to) {
  Lanes scale = load(scales);
  for (int64_t i = 0; i < dim; ++i) store(to + i * kBlockTokens, widened(from + i * kBlockTokens) * scale);
}

static void widen_int8_values(const int8_t* from, const float* scales, int64_t stride, float* to) {
  for (int t = 0; t < kBlockTokens; ++t)
    for (int64_t i = 0; i < stride; i += kBlockTokens) store(to + t * stride + i, widened(from + t * stride + i) * scales[t]);
}

// Block `b` of a chunk from rows. Where the context ends within the block, its last token stands for those that are not there,
// which nobody looks at.
static void gather_rows(const Tiled& w, const Chunk& chunk, int b, float* keys, float* values) {
  const KvRows& rows = w.t.cache.rows;
  const int64_t row = w.t.num_kv_heads * w.dim, head = w.t.kv_head * w.dim;
  const int64_t first = chunk.start + b * kBlockTokens, end = chunk.start + chunk.count;
  const float* key[kBlockTokens];
  for (int t = 0; t < kBlockTokens; ++t) {
    const int64_t token = first + t < end ? first + t : end - 1;
    const bool old = token < rows.past;
    const int64_t at = (old ? token : token - rows.past) * row + head;
    key[t] = (old ? rows.past_keys : rows.new_keys) + at;
    std::memcpy(values + t * w.stride, (old ? rows.past_values : rows.new_values) + at, sizeof(float) * w.dim);
    for (int64_t i = w.dim; i < w.stride; ++i) values[t * w.stride + i] = 0.0f;
  }
  for (int64_t i = 0; i < w.dim; ++i)
    for (int t = 0; t < kBlockTokens; ++t) keys[i * kBlockTokens + t] = key[t][i];
}

static void stage(const Tiled& w, Chunk& chunk) {
  const int64_t key_size = w.dim * kBlockTokens, value_size = w.stride * kBlockTokens;
  const KvView& kv = w.t.cache;
  for (int b = 0; b < chunk.blocks; ++b) {
    float *keys = w.keys + b * key_size, *values = w.values + b * value_size;
    chunk.keys[b] = keys;
    chunk.values[b] = values;
    if (kv.type == KvType::kRows) {
      gather_rows(w, chunk, b, keys, values);
      continue;
    }
    int64_t row = w.cache_row(chunk.start / kBlockTokens + b);
    switch (kv.type) {
      case KvType::kFloat32:
        chunk.keys[b] = static_cast<const float*>(kv.keys) + row * key_size;
        chunk.values[b] = static_cast<const float*>(kv.values) + row * value_size;
        break;
      case KvType::kBfloat16:
        widen_bfloat16(static_cast<const uint16_t*>(kv.keys) + row * key_size, key_size, keys);
        widen_bfloat16(static_cast<const uint16_t*>(kv.values) + row * value_size, value_size, values);
        break;
      case KvType::kInt8:
        widen_int8_keys(static_cast<const int8_t*>(kv.keys) + row * key_size, kv.key_scales + row * kBlockTokens, w.dim, keys);
        widen_int8_values(static_cast<const int8_t*>(kv.values) + row * value_size, kv.value_scales + row * kBlockTokens,
                          w.stride, values);
        break;
      case KvType::kRows: break;  // above
    }
  }
}

// Scores of kCount vectors against the 16 tokens of one block. Elements are added in order of i, whatever kCount is.
template <int kCount>
static inline void block_scores(const float* queries, const float* keys, int64_t dim, float* scores) {
  Lanes sums[kCount];
  for (int c = 0; c < kCount; ++c) sums[c] = Lanes{};
  for (int64_t i = 0; i < dim; ++i) {
    Lanes key = load(keys + i * kBlockTokens);
    for (int c = 0; c < kCount; ++c) sums[c] += queries[i * kCount + c] * key;
  }
  for (int c = 0; c < kCount; ++c) store(scores + c * kChunkTokens, sums[c]);
}

// sums[c][0 .. 16) += weight * value over the first `tokens` tokens of the chunk, in their order.
template <int kCount>
static inline void chunk_values(const float* weights, const Chunk& chunk, int tokens, int64_t column, int64_t stride,
                                float* sums) {
  Lanes acc[kCount];
  for (int c = 0; c < kCount; ++c) acc[c] = load(sums + c * stride);
  for (int first = 0; first < tokens; first += kBlockTokens) {
    const float* value = chunk.values[first / kBlockTokens] + column;
    int count = tokens - first < kBlockTokens ? tokens - first : kBlockTokens;
    for (int t = 0; t < count; ++t, value += stride) {
      Lanes v = load(value);
      for (int c = 0; c < kCount; ++c) acc[c] += weights[c * kChunkTokens + first + t] * v;
    }
  }
  for (int c = 0; c < kCount; ++c) store(sums + c * stride, acc[c]);
}

// Turns one vector's scores of a chunk into weights, after what it has summed so far was brought to the new maximum.
static void weigh(const Tiled& w, const Chunk& chunk, int v) {
  float* scores = w.scores + static_cast<int64_t>(v) * kChunkTokens;
  const int64_t left = w.context(v) - chunk.start;
  const int visible = static_cast<int>(left < 0 ? 0 : left < chunk.count ? left : chunk.count);
  const int whole = chunk.blocks * kBlockTokens;
  if (visible == 0) {
    for (int i = 0; i < whole; ++i) scores[i] = 0.0f;
    return;
  }
  for (int i = visible; i < whole; ++i) scores[i] = -INFINITY;
  Lanes highest = load(scores);
  for (int i = kBlockTokens; i < whole; i += kBlockTokens) {
    Lanes next = load(scores + i);
    highest = highest > next ? highest : next;
  }
  float peak = w.peaks[v];
  for (int l = 0; l < kBlockTokens; ++l) peak = highest[l] > peak ? highest[l] : peak;
  Lanes total = load(w.totals + v * kBlockTokens);
  if (peak != w.peaks[v]) {
    float correction = exp_fast(w.peaks[v] - peak);
    float* sums = w.sums + v * w.stride;
    for (int64_t i = 0; i < w.stride; i += kBlockTokens) store(sums + i, load(sums + i) * correction);
    total *= correction;
    w.peaks[v] = peak;
  }
#pragma omp simd
  for (int i = 0; i < whole; ++i) scores[i] = exp_fast(scores[i] - peak);
  for (int i = visible; i < whole; ++i) scores[i] = 0.0f;
  for (int i = 0; i < whole; i += kBlockTokens) total += load(scores + i);
  store(w.totals + v * kBlockTokens, total);
}

static void pack_queries(const Tiled& w) {
  for (int first = 0; first < w.vectors; first += PDS_TILE) {
    int count = w.vectors - first < PDS_TILE ? w.vectors - first : PDS_TILE;
    float* group = w.queries + first * w.dim;
    for (int c = 0; c < count; ++c) {
      const float* query = w.t.query + ((first + c) / w.t.group) * w.t.query_stride + w.offset(first + c);
      for (int64_t i = 0; i < w.dim; ++i) group[i * count + c] = query[i] * w.query_scale;
    }
  }
}

static void attend_chunk(const Tiled& w, const Chunk& chunk) {
  // rows before this one end before the chunk; a group that holds some of them is computed whole
  int64_t unseen = chunk.start - w.t.first_context + 1;
  int first_seen = static_cast<int>(unseen > 0 ? unseen * w.t.group : 0) / PDS_TILE * PDS_TILE;
  for (int first = first_seen; first < w.vectors; first += PDS_TILE) {
    int count = w.vectors - first < PDS_TILE ? w.vectors - first : PDS_TILE;
    float* scores = w.scores + static_cast<int64_t>(first) * kChunkTokens;
    of_count<PDS_TILE>(count, [&](auto num) {
      for (int b = 0; b < chunk.blocks; ++b)
        block_scores<decltype(num)::value>(w.queries + first * w.dim, chunk.keys[b], w.dim, scores + b * kBlockTokens);
    });
    for (int v = first; v < first + count; ++v) weigh(w, chunk, v);
  }
  for (int64_t column = 0; column < w.stride; column += kBlockTokens)
    for (int first = first_seen; first < w.vectors; first += PDS_TILE) {
      int count = w.vectors - first < PDS_TILE ? w.vectors - first : PDS_TILE;
      int64_t left = w.context(first + count - 1) - chunk.start;
      int tokens = static_cast<int>(left < chunk.count ? left : chunk.count);
      of_count<PDS_TILE>(count, [&](auto num) {
        chunk_values<decltype(num)::value>(w.scores + static_cast<int64_t>(first) * kChunkTokens, chunk, tokens, column,
                                           w.stride, w.sums + first * w.stride + column);
      });
    }
}

static void attend(const AttentionTile& tile) {
  Tiled w(tile);
  std::memset(w.sums, 0, sizeof(float) * w.stride * w.vectors);
  std::memset(w.totals, 0, sizeof(float) * kBlockTokens * w.vectors);
  for (int v = 0; v < w.vectors; ++v) w.peaks[v] = -INFINITY;
  pack_queries(w);
  for (int64_t start = 0; start < w.longest(); start += kChunkTokens) {
    int64_t left = w.longest() - start;
    Chunk chunk{};
    chunk.start = start;
    chunk.count = static_cast<int>(left < kChunkTokens ? left : kChunkTokens);
    chunk.blocks = (chunk.count + kBlockTokens - 1) / kBlockTokens;
    stage(w, chunk);
    attend_chunk(w, chunk);
  }
  for (int v = 0; v < w.vectors; ++v) {
    float* out = tile.out + (v / tile.group) * tile.out_stride + w.offset(v);
    const float *sums = w.sums + v * w.stride, inverse = 1.0f / add_lanes(load(w.totals + v * kBlockTokens));
    for (int64_t i = 0; i < w.dim; ++i) out[i] = sums[i] * inverse;
  }
}

static inline uint16_t narrowed(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (x != x) return static_cast<uint16_t>((bits >> 16) | 0x40);  // a NaN stays one
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}

// One head of one token: elements `step` apart in the cache, floats next to each other before. Returns its scale: `fixed` where
// that is not null, and elements beyond its range are clipped.
static float write_int8(const float* x, int64_t dim, const float* fixed, int8_t* to, int64_t step) {
  if (fixed != nullptr) {
    const float scale = *fixed;
    auto clipped = [scale](float v) {
      v /= scale;
      return v < -127.0f ? -127.0f : v > 127.0f ? 127.0f : v;
    };
    round_row<0>(x, dim, clipped, to, step);
    return scale + poison(x, dim);
  }
  float inverse, scale = quantization(x, dim, &inverse);
  round_row<0>(x, dim, [inverse](float v) { return v * inverse; }, to, step);
  return scale;
}

static inline const float* scale_of(const float* static_scales, int64_t head) {
  return static_scales == nullptr ? nullptr : static_scales + head;
}

static void write_kv(const float* key, const float* value, const KvView& kv, int64_t slot, int64_t kv_heads, int64_t dim) {
  if (kv.type == KvType::kRows) {
    const int64_t row = kv_heads * dim, at = (slot - kv.rows.past) * row;
    std::memcpy(kv.rows.new_keys + at, key, sizeof(float) * row);
    std::memcpy(kv.rows.new_values + at, value, sizeof(float) * row);
    return;
  }
  const int64_t block = slot / kBlockTokens, offset = slot % kBlockTokens, stride = padded_dim(dim);
  for (int64_t h = 0; h < kv_heads; ++h, key += dim, value += dim) {
    const int64_t row = block * kv_heads + h;
    const int64_t key_at = row * dim * kBlockTokens + offset, value_at = (row * kBlockTokens + offset) * stride;
    if (kv.type == KvType::kFloat32) {
      float *keys = static_cast<float*>(kv.keys) + key_at, *values = static_cast<float*>(kv.values) + value_at;
      for (int64_t i = 0; i < dim; ++i) keys[i * kBlockTokens] = key[i];
      for (int64_t i = 0; i < stride; ++i) values[i] = i < dim ? value[i] : 0.0f;
    } else if (kv.type == KvType::kBfloat16) {
      uint16_t *keys = static_cast<uint16_t*>(kv.keys) + key_at, *values = static_cast<uint16_t*>(kv.values) + value_at;
      for (int64_t i = 0; i < dim; ++i) keys[i * kBlockTokens] = narrowed(key[i]);
      for (int64_t i = 0; i < stride; ++i) values[i] = i < dim ? narrowed(value[i]) : 0;
    } else {
      int8_t *keys = static_cast<int8_t*>(kv.keys) + key_at, *values = static_cast<int8_t*>(kv.values) + value_at;
      kv.key_scales[row * kBlockTokens + offset] = write_int8(key, dim, scale_of(kv.static_key_scales, h), keys, kBlockTokens);
      kv.value_scales[row * kBlockTokens + offset] = write_int8(value, dim, scale_of(kv.static_value_scales, h), values, 1);
      for (int64_t i = dim; i < stride; ++i) values[i] = 0;
    }
  }
}
