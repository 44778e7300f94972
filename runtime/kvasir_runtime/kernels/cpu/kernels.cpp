// Decode attention and the small operations around it, for CPUs.
//
// Plain loops that the compiler vectorises; it is compiled once for each instruction set (see build.py). Numbers are
// read as float32 or bfloat16 and computed in float32. Threads come from the OpenMP pool that torch uses.
//
// Letters: T rows, D features, N decode rows, H query heads, K KV heads, G = H / K, C head dimension, B blocks,
// S tokens in a block. Every entry point is checked against its torch oracle by the tests.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

inline void store(float &target, float value) { target = value; }

inline void store(bf16 &target, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // Round to nearest, ties to even. NaN stays NaN: its payload's high bits survive or are set.
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    target.bits = uint16_t(value == value ? rounded : 0x7fc0);
}

// exp(x) for x <= 0 with a relative error below 2e-7: 2^n times a polynomial on [-ln2/2, ln2/2] (Cody and Waite).
inline float exp_nonpositive(float x) {
    x = std::max(x, -87.0f);
    float n = std::nearbyintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t exponent = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &exponent, 4);
    return p * scale;
}

constexpr int CHUNK = 512;      // tokens whose attention is computed by one thread at a time
constexpr int MAX_GROUP = 16;   // query heads of a KV head that are computed together
constexpr int MAX_BLOCK = 128;  // tokens in a block

struct Decode {
    const void *q;               // [N, H, C]
    const void *kv;              // [2, B, K, S, C]
    const int32_t *tables;       // [N, table_width]
    const int32_t *lengths;      // [N]
    void *out;                   // [N, H, C]
    int64_t rows, heads, kv_heads, head_dim, blocks, block_size, table_width;
    float scale, softcap;        // softcap 0: none
    int64_t window;              // 0: none
};

// One thread's part: queries of one KV head over tokens [begin, end) of one row. Writes for each query the running
// maximum, the sum of exponentials and the weighted sum of values: [G, 2 + C] floats.
template <typename T, int C_>
void attend_chunk(const Decode &d, int64_t row, int64_t kv_head, int64_t begin, int64_t end, float *partial) {
    const int64_t C = C_ ? C_ : d.head_dim, S = d.block_size, G = d.heads / d.kv_heads;
    const T *q = static_cast<const T *>(d.q) + (row * d.heads + kv_head * G) * C;
    const T *keys = static_cast<const T *>(d.kv) + kv_head * S * C;
    const T *values = keys + d.blocks * d.kv_heads * S * C;
    float query[MAX_GROUP * 256], score[MAX_GROUP * MAX_BLOCK];
    for (int64_t i = 0; i < G * C; i++) query[i] = load(q[i]) * d.scale;
    for (int64_t g = 0; g < G; g++) {
        partial[g * (C + 2)] = -std::numeric_limits<float>::infinity();
        std::fill_n(partial + g * (C + 2) + 1, C + 1, 0.0f);
    }
    for (int64_t first = begin; first < end;) {
        const int64_t block = d.tables[row * d.table_width + first / S], offset = first % S;
        const int64_t count = std::min(S - offset, end - first);
        const T *k = keys + block * d.kv_heads * S * C + offset * C;
        const T *v = values + block * d.kv_heads * S * C + offset * C;
        for (int64_t t = 0; t < count; t++) {
            float key[256];
            for (int64_t c = 0; c < C; c++) key[c] = load(k[t * C + c]);
            for (int64_t g = 0; g < G; g++) {
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t c = 0; c < C; c++) sum += query[g * C + c] * key[c];
                score[g * MAX_BLOCK + t] = sum;
            }
        }
        for (int64_t g = 0; g < G; g++) {
            float *s = score + g * MAX_BLOCK, *state = partial + g * (C + 2), *sums = state + 2;
            if (d.softcap > 0)
                for (int64_t t = 0; t < count; t++) s[t] = d.softcap * std::tanh(s[t] / d.softcap);
            float highest = state[0];
            for (int64_t t = 0; t < count; t++) highest = std::max(highest, s[t]);
            if (highest > state[0]) {
                const float shrink = exp_nonpositive(state[0] - highest);
                state[0] = highest;
                state[1] *= shrink;
                for (int64_t c = 0; c < C; c++) sums[c] *= shrink;
            }
            float total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t t = 0; t < count; t++) {
                s[t] = exp_nonpositive(s[t] - highest);
                total += s[t];
            }
            state[1] += total;
        }
        for (int64_t t = 0; t < count; t++) {
            float value[256];
            for (int64_t c = 0; c < C; c++) value[c] = load(v[t * C + c]);
            for (int64_t g = 0; g < G; g++) {
                float *sums = partial + g * (C + 2) + 2;
                const float weight = score[g * MAX_BLOCK + t];
#pragma omp simd
                for (int64_t c = 0; c < C; c++) sums[c] += weight * value[c];
            }
        }
        first += count;
    }
}

// Join the chunks of one row and KV head: weights are rescaled to the highest maximum (log-sum-exp merge).
template <typename T>
void merge_chunks(const Decode &d, int64_t row, int64_t kv_head, int64_t chunks, const float *partials) {
    const int64_t C = d.head_dim, G = d.heads / d.kv_heads, stride = G * (C + 2);
    T *out = static_cast<T *>(d.out) + (row * d.heads + kv_head * G) * C;
    for (int64_t g = 0; g < G; g++) {
        float highest = -std::numeric_limits<float>::infinity(), total = 0, sums[256] = {};
        for (int64_t i = 0; i < chunks; i++) highest = std::max(highest, partials[i * stride + g * (C + 2)]);
        for (int64_t i = 0; i < chunks; i++) {
            const float *state = partials + i * stride + g * (C + 2);
            const float weight = exp_nonpositive(state[0] - highest);
            total += weight * state[1];
            for (int64_t c = 0; c < C; c++) sums[c] += weight * state[2 + c];
        }
        for (int64_t c = 0; c < C; c++) store(out[g * C + c], sums[c] / total);
    }
}

struct Item {
    int64_t row, kv_head, begin, end;
};

template <typename T, int C_>
void decode(const Decode &d, int threads) {
    // Chunks are cut at fixed positions, whatever else is in the batch: a row's result never depends on its neighbours.
    std::vector<Item> items;
    std::vector<int64_t> first_item;
    int64_t tokens = 0;
    for (int64_t row = 0; row < d.rows; row++) {
        const int64_t end = d.lengths[row], begin = d.window ? std::max<int64_t>(0, end - d.window) : 0;
        tokens += end - begin;
        for (int64_t kv_head = 0; kv_head < d.kv_heads; kv_head++) {
            first_item.push_back(items.size());
            for (int64_t at = begin; at < end; at = (at / CHUNK + 1) * CHUNK)
                items.push_back({row, kv_head, at, std::min(end, (at / CHUNK + 1) * CHUNK)});
        }
    }
    first_item.push_back(items.size());
    const int64_t stride = d.heads / d.kv_heads * (d.head_dim + 2);
    std::vector<float> partials(items.size() * stride);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (tokens * d.kv_heads > 256)
    for (size_t i = 0; i < items.size(); i++)
        attend_chunk<T, C_>(d, items[i].row, items[i].kv_head, items[i].begin, items[i].end, &partials[i * stride]);
    for (int64_t i = 0; i < d.rows * d.kv_heads; i++)
        merge_chunks<T>(d, i / d.kv_heads, i % d.kv_heads, first_item[i + 1] - first_item[i], &partials[first_item[i] * stride]);
}

template <typename T>
void decode_any(const Decode &d, int threads) {
    switch (d.head_dim) {
        case 64: return decode<T, 64>(d, threads);
        case 128: return decode<T, 128>(d, threads);
        default: return decode<T, 0>(d, threads);
    }
}

template <typename T>
void rotate(const T *x, T *out, const float *cos_sin, int64_t C) {
    const int64_t half = C / 2;
    const float *cosine = cos_sin, *sine = cos_sin + half;
#pragma omp simd
    for (int64_t c = 0; c < half; c++) {
        const float left = load(x[c]), right = load(x[c + half]);
        store(out[c], left * cosine[c] - right * sine[c]);
        store(out[c + half], right * cosine[c] + left * sine[c]);
    }
}

template <typename T>
void write_kv(const T *q, const T *k, const T *v, T *q_out, T *kv, const float *cos_sin, const int64_t *positions,
              const int64_t *slots, int64_t rows, int64_t heads, int64_t kv_heads, int64_t C, int64_t blocks, int64_t S,
              int64_t q_stride, int64_t k_stride, int64_t v_stride, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * heads > 256)
    for (int64_t row = 0; row < rows; row++) {
        const float *angles = cos_sin + positions[row] * C;
        for (int64_t h = 0; h < heads; h++) rotate(q + row * q_stride + h * C, q_out + (row * heads + h) * C, angles, C);
        T *target = kv + (slots[row] / S * kv_heads * S + slots[row] % S) * C;
        for (int64_t h = 0; h < kv_heads; h++, target += S * C) {
            rotate(k + row * k_stride + h * C, target, angles, C);
            std::memcpy(target + blocks * kv_heads * S * C, v + row * v_stride + h * C, C * sizeof(T));
        }
    }
}

template <typename T>
void rms_norm(const T *x, T *residual, const float *weight, T *out, int64_t rows, int64_t D, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * D > 32768)
    for (int64_t row = 0; row < rows; row++) {
        const T *in = x + row * D;
        if (residual) {
            T *sum = residual + row * D;
#pragma omp simd
            for (int64_t i = 0; i < D; i++) store(sum[i], load(sum[i]) + load(in[i]));
            in = sum;
        }
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < D; i++) squares += load(in[i]) * load(in[i]);
        const float scale = 1.0f / std::sqrt(squares / D + eps);
#pragma omp simd
        for (int64_t i = 0; i < D; i++) store(out[row * D + i], load(in[i]) * scale * weight[i]);
    }
}

template <typename T>
void silu_and_mul(const T *x, T *out, int64_t rows, int64_t F, int threads) {
#pragma omp parallel for num_threads(threads) if (rows * F > 16384)
    for (int64_t row = 0; row < rows; row++) {
        const T *gate = x + row * 2 * F, *up = gate + F;
#pragma omp simd
        for (int64_t i = 0; i < F; i++) {
            const float g = load(gate[i]), e = exp_nonpositive(-std::fabs(g));
            // sigmoid(g) from exp(-|g|), which cannot overflow.
            store(out[row * F + i], g * (g >= 0 ? 1.0f : e) / (1.0f + e) * load(up[i]));
        }
    }
}

}  // namespace

extern "C" {

int kvasir_max_group() { return MAX_GROUP; }

void kvasir_decode(int is_bf16, const void *q, const void *kv, const int32_t *tables, const int32_t *lengths, void *out,
                   int64_t rows, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t blocks, int64_t block_size,
                   int64_t table_width, float scale, float softcap, int64_t window, int threads) {
    const Decode d{q, kv, tables, lengths, out, rows, heads, kv_heads, head_dim, blocks, block_size, table_width, scale,
                   softcap, window};
    is_bf16 ? decode_any<bf16>(d, threads) : decode_any<float>(d, threads);
}

void kvasir_write_kv(int is_bf16, const void *q, const void *k, const void *v, void *q_out, void *kv,
                     const float *cos_sin, const int64_t *positions, const int64_t *slots, int64_t rows, int64_t heads,
                     int64_t kv_heads, int64_t head_dim, int64_t blocks, int64_t block_size, int64_t q_stride,
                     int64_t k_stride, int64_t v_stride, int threads) {
    auto run = [&](auto zero) {
        using T = decltype(zero);
        write_kv<T>((const T *)q, (const T *)k, (const T *)v, (T *)q_out, (T *)kv, cos_sin, positions, slots, rows,
                    heads, kv_heads, head_dim, blocks, block_size, q_stride, k_stride, v_stride, threads);
    };
    is_bf16 ? run(bf16{}) : run(float{});
}

// `residual` may be null; else it becomes residual + x, and that is normalised.
void kvasir_rms_norm(int is_bf16, const void *x, void *residual, const float *weight, void *out, int64_t rows,
                     int64_t features, float eps, int threads) {
    is_bf16 ? rms_norm<bf16>((const bf16 *)x, (bf16 *)residual, weight, (bf16 *)out, rows, features, eps, threads)
            : rms_norm<float>((const float *)x, (float *)residual, weight, (float *)out, rows, features, eps, threads);
}

void kvasir_silu_and_mul(int is_bf16, const void *x, void *out, int64_t rows, int64_t features, int threads) {
    is_bf16 ? silu_and_mul<bf16>((const bf16 *)x, (bf16 *)out, rows, features, threads)
            : silu_and_mul<float>((const float *)x, (float *)out, rows, features, threads);
}
}
