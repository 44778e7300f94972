// What all kernels share: number types, vectors of sixteen floats and exponentials.
//
// Plain loops that the compiler vectorises; all is compiled once for each instruction set (see build.py). Numbers are
// read as float32 or bfloat16 and computed in float32. Threads come from the OpenMP pool that torch uses. Every entry
// point is checked against its torch oracle by the tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

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

constexpr int TILE = 16;  // tokens whose attention is computed together: one vector of scores

// Whether the blocks of a KV cache hold tiles of pairs (see attention.cpp) instead of rows.
inline bool paired([[maybe_unused]] bool is_bf16, [[maybe_unused]] int64_t block_size) {
#ifdef __AVX512BF16__
    return is_bf16 && block_size % TILE == 0;
#else
    return false;
#endif
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

// Sixteen floats; on narrower machines the compiler makes several registers of it.
typedef float v16 __attribute__((vector_size(64)));
typedef int32_t v16i __attribute__((vector_size(64)));
typedef uint32_t v16u __attribute__((vector_size(64)));
typedef uint16_t v16h __attribute__((vector_size(32)));

inline v16 load16(const float *x) {
    v16 v;
    std::memcpy(&v, x, sizeof v);
    return v;
}

inline v16 load16(const bf16 *x) {
    v16h narrow;
    std::memcpy(&narrow, x, sizeof narrow);
    return v16(__builtin_convertvector(narrow, v16u) << 16);
}

inline void store16(float *x, v16 v) { std::memcpy(x, &v, sizeof v); }

// To the nearest, ties to even, as `store` does for one number.
inline void store16(bf16 *x, v16 v) {
    const v16u bits = v16u(v);
    const v16u rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const v16h narrow = __builtin_convertvector(v == v ? rounded : v16u{} + 0x7fc0, v16h);
    std::memcpy(x, &narrow, sizeof narrow);
}

inline v16 all(float x) { return v16{} + x; }

// As exp_nonpositive, for sixteen numbers.
inline v16 exp16(v16 x) {
    x = x > -87.0f ? x : all(-87.0f);
    const v16i n = __builtin_convertvector(x * 1.44269504f - 0.5f, v16i);  // truncation: to nearest, for x <= 0
    const v16 f = __builtin_convertvector(n, v16);
    const v16 r = x - f * 0.693359375f + f * 2.12194440e-4f;
    v16 p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * v16((n + 127) << 23);
}

// sums[j] = the sum of vector j, by a tree of pairwise additions that transposes on its way.
inline v16 sum_each(const v16 *x) {
    v16 a[8], b[4], c[2];
    for (int i = 0; i < 8; i++)
        a[i] = __builtin_shufflevector(x[2 * i], x[2 * i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
               __builtin_shufflevector(x[2 * i], x[2 * i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    for (int i = 0; i < 4; i++)
        b[i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               __builtin_shufflevector(a[2 * i], a[2 * i + 1], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    for (int i = 0; i < 2; i++)
        c[i] = __builtin_shufflevector(b[2 * i], b[2 * i + 1], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               __builtin_shufflevector(b[2 * i], b[2 * i + 1], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    return __builtin_shufflevector(c[0], c[1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(c[0], c[1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

// The vector rotated by half its length, by a quarter and so on: four steps reduce it to one number.
inline v16 swap8(v16 x) { return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7); }
inline v16 swap4(v16 x) { return __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11); }
inline v16 swap2(v16 x) { return __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13); }
inline v16 swap1(v16 x) { return __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14); }

inline bool any(v16i mask) {
#ifdef __AVX512DQ__
    return _mm512_movepi32_mask(__m512i(mask));
#else
    int32_t found = 0;
    for (int i = 0; i < 16; i++) found |= mask[i];
    return found;
#endif
}

inline v16 larger(v16 x, v16 y) { return x > y ? x : y; }

inline float highest_of(v16 x) {
    x = larger(x, swap8(x));
    x = larger(x, swap4(x));
    x = larger(x, swap2(x));
    return larger(x, swap1(x))[0];
}

inline float sum_of(v16 x) {
    x += swap8(x);
    x += swap4(x);
    x += swap2(x);
    return x[0] + x[1];
}

}  // namespace
