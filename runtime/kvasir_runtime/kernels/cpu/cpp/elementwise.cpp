// The small operations around attention: RoPE with the write to the KV cache, RMSNorm, SiLU.
//
// Letters: D and F features, C head dimension, S tokens in a block.

#include "vectors.h"

namespace {

constexpr int64_t MOST_HEAD_DIM = 256;

template <typename T>
void rotate(const T *x, T *out, const float *cos_sin, int64_t C) {
    const int64_t half = C / 2;
    const float *cosine = cos_sin, *sine = cos_sin + half;
    int64_t c = 0;
    for (; c + 16 <= half; c += 16) {
        const v16 left = load16(x + c), right = load16(x + c + half), along = load16(cosine + c), across = load16(sine + c);
        store16(out + c, left * along - right * across);
        store16(out + c + half, right * along + left * across);
    }
    for (; c < half; c++) {
        const float left = load(x[c]), right = load(x[c + half]);
        store(out[c], left * cosine[c] - right * sine[c]);
        store(out[c + half], right * cosine[c] + left * sine[c]);
    }
}

// One token's key and value of one head, put where attention.cpp looks for them: `block` is what the head keeps in the
// block, `token` the token's number there. The key is not rotated yet.
template <typename T>
void put_row(const T *k, const T *v, T *key_block, int64_t to_values, int64_t token, const float *angles, int64_t C) {
    rotate(k, key_block + token * C, angles, C);
    std::memcpy(key_block + to_values + token * C, v, C * sizeof(T));
}

#ifdef __AVX512BF16__

void put_pairs(const bf16 *k, const bf16 *v, bf16 *key_block, int64_t to_values, int64_t token, const float *angles, int64_t C) {
    bf16 rotated[MOST_HEAD_DIM];
    rotate(k, rotated, angles, C);
    const int64_t place = token % TILE;
    bf16 *keys = key_block + token / TILE * TILE * C, *values = keys + to_values + place / 2 * 2 * C;
    for (int64_t c = 0; c < C; c += 2) std::memcpy(keys + c * TILE + place * 2, rotated + c, 4);
    // Every second number of the pair's vectors; the neighbour's may be written at the same time.
    const __mmask32 mine = place % 2 ? 0xaaaaaaaa : 0x55555555;
    for (int64_t c = 0; c < C; c += 16) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(v + c)));
        _mm512_mask_storeu_epi16(values + 2 * c, mine, place % 2 ? _mm512_slli_epi32(wide, 16) : wide);
    }
}

#endif

template <typename T, typename Put>
void write_kv(const T *q, const T *k, const T *v, T *q_out, T *kv, const float *cos_sin, const int64_t *positions,
              const int64_t *slots, int64_t rows, int64_t heads, int64_t kv_heads, int64_t C, int64_t blocks, int64_t S,
              int64_t q_stride, int64_t k_stride, int64_t v_stride, int threads, Put put) {
#pragma omp parallel for num_threads(threads) if (rows * heads > 64)
    for (int64_t row = 0; row < rows; row++) {
        const float *angles = cos_sin + positions[row] * C;
        for (int64_t h = 0; h < heads; h++) rotate(q + row * q_stride + h * C, q_out + (row * heads + h) * C, angles, C);
        T *block = kv + slots[row] / S * kv_heads * S * C;
        for (int64_t h = 0; h < kv_heads; h++, block += S * C)
            put(k + row * k_stride + h * C, v + row * v_stride + h * C, block, blocks * kv_heads * S * C, slots[row] % S, angles, C);
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

void kvasir_write_kv(int is_bf16, const void *q, const void *k, const void *v, void *q_out, void *kv,
                     const float *cos_sin, const int64_t *positions, const int64_t *slots, int64_t rows, int64_t heads,
                     int64_t kv_heads, int64_t head_dim, int64_t blocks, int64_t block_size, int64_t q_stride,
                     int64_t k_stride, int64_t v_stride, int threads) {
    auto run = [&](auto zero, auto put) {
        using T = decltype(zero);
        write_kv((const T *)q, (const T *)k, (const T *)v, (T *)q_out, (T *)kv, cos_sin, positions, slots, rows, heads,
                 kv_heads, head_dim, blocks, block_size, q_stride, k_stride, v_stride, threads, put);
    };
#ifdef __AVX512BF16__
    if (paired(is_bf16, block_size)) return run(bf16{}, put_pairs);
#endif
    is_bf16 ? run(bf16{}, put_row<bf16>) : run(float{}, put_row<float>);
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
