// int8 weights. Letters: R rows, I input features, O output features.
//
// A panel holds PANEL outputs: for each four inputs the four weights of each output lie together, 64 bytes for
// sixteen outputs, as the dot-product instructions read them. Activations are quantized row by row to 8 bits and
// shifted by 128 to be unsigned; `shift` undoes that: 128 times the sum of an output's weights.

#include "vectors.h"

namespace {

constexpr int64_t PANEL = 32;

struct Int8Weight {
    const int8_t *panels;   // [ceil(O / PANEL), ceil(I / 4), 2, 16, 4]
    const float *scales;    // [O]
    const int32_t *shifts;  // [O]
    const float *bias;      // [O] or null
    int64_t outputs, inputs;
};

template <typename T>
void pack_int8(const T *weight, int8_t *panels, float *scales, int32_t *shifts, int64_t O, int64_t I, int threads) {
    const int64_t quads = (I + 3) / 4;
#pragma omp parallel for num_threads(threads)
    for (int64_t o = 0; o < O; o++) {
        float highest = 0;
        for (int64_t i = 0; i < I; i++) highest = std::max(highest, std::fabs(load(weight[o * I + i])));
        const float scale = highest > 0 ? highest / 127 : 1.0f;
        int32_t sum = 0;
        int8_t *column = panels + o / PANEL * quads * PANEL * 4 + o % PANEL * 4;
        for (int64_t i = 0; i < I; i++) {
            const int value = int(std::nearbyintf(load(weight[o * I + i]) / scale));
            column[i / 4 * PANEL * 4 + i % 4] = int8_t(value);
            sum += value;
        }
        scales[o] = scale;
        shifts[o] = 128 * sum;
    }
}

template <typename T>
float quantize_row(const T *x, uint8_t *out, int64_t I) {
    float highest = 0;
#pragma omp simd reduction(max : highest)
    for (int64_t i = 0; i < I; i++) highest = std::max(highest, std::fabs(load(x[i])));
    const float inverse = highest > 0 ? 1 / (highest / 127) : 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < I; i++) out[i] = uint8_t(int(load(x[i]) * inverse + 128.5f));
    return highest / 127;
}

// R rows by one panel: sums[r][o] over all inputs. Rows are `stride` bytes apart.
template <int R>
void multiply_panel(const uint8_t *x, int64_t stride, const int8_t *panel, int64_t quads, int32_t (*sums)[PANEL]) {
#ifdef __AVX512VNNI__
    __m512i low[R] = {}, high[R] = {};
    for (int64_t i = 0; i < quads; i++) {
        const __m512i first = _mm512_loadu_si512(panel + i * PANEL * 4), second = _mm512_loadu_si512(panel + i * PANEL * 4 + 64);
        for (int r = 0; r < R; r++) {
            int32_t four;
            std::memcpy(&four, x + r * stride + i * 4, 4);
            const __m512i inputs = _mm512_set1_epi32(four);
            low[r] = _mm512_dpbusd_epi32(low[r], inputs, first);
            high[r] = _mm512_dpbusd_epi32(high[r], inputs, second);
        }
    }
    for (int r = 0; r < R; r++) {
        _mm512_storeu_si512(sums[r], low[r]);
        _mm512_storeu_si512(sums[r] + 16, high[r]);
    }
#else
    for (int r = 0; r < R; r++) {
        std::fill_n(sums[r], PANEL, 0);
        for (int64_t i = 0; i < quads; i++)
            for (int o = 0; o < PANEL; o++)
                for (int j = 0; j < 4; j++)
                    sums[r][o] += int32_t(x[r * stride + i * 4 + j]) * panel[i * PANEL * 4 + o * 4 + j];
    }
#endif
}

template <typename T>
void linear_int8(const T *x, const Int8Weight &w, T *out, int64_t rows, int threads) {
    constexpr int TALL = 8;
    const int64_t I = w.inputs, O = w.outputs, quads = (I + 3) / 4, stride = quads * 4;
    static thread_local std::vector<uint8_t> quantized;  // kept from call to call
    static thread_local std::vector<float> row_scales;
    quantized.assign(rows * stride, 128);
    row_scales.resize(rows);
    uint8_t *const xq = quantized.data();
    float *const scales = row_scales.data();
#pragma omp parallel for num_threads(threads) if (rows * I > 65536)
    for (int64_t r = 0; r < rows; r++) scales[r] = quantize_row(x + r * I, xq + r * stride, I);
#pragma omp parallel for num_threads(threads)
    for (int64_t panel = 0; panel < (O + PANEL - 1) / PANEL; panel++) {
        const int8_t *weights = w.panels + panel * stride * PANEL;
        const int64_t first = panel * PANEL, count = std::min(PANEL, O - first);
        int32_t sums[TALL][PANEL];
        for (int64_t row = 0; row < rows;) {
            const uint8_t *at = xq + row * stride;
            int64_t done = 1;
            if (row + TALL <= rows) multiply_panel<TALL>(at, stride, weights, quads, sums), done = TALL;
            else if (row + 4 <= rows) multiply_panel<4>(at, stride, weights, quads, sums), done = 4;
            else if (row + 2 <= rows) multiply_panel<2>(at, stride, weights, quads, sums), done = 2;
            else multiply_panel<1>(at, stride, weights, quads, sums);
            for (int64_t r = 0; r < done; r++)
                for (int64_t o = 0; o < count; o++) {
                    const float value = float(sums[r][o] - w.shifts[first + o]) * w.scales[first + o] * scales[row + r];
                    store(out[(row + r) * O + first + o], w.bias ? value + w.bias[first + o] : value);
                }
            row += done;
        }
    }
}

}  // namespace

extern "C" {

// Bytes of the panels of an [outputs, inputs] weight.
int64_t kvasir_int8_bytes(int64_t outputs, int64_t inputs) {
    return (outputs + PANEL - 1) / PANEL * PANEL * ((inputs + 3) / 4 * 4);
}

// `panels` is zeroed memory of kvasir_int8_bytes.
void kvasir_pack_int8(int is_bf16, const void *weight, int8_t *panels, float *scales, int32_t *shifts, int64_t outputs,
                      int64_t inputs, int threads) {
    is_bf16 ? pack_int8((const bf16 *)weight, panels, scales, shifts, outputs, inputs, threads)
            : pack_int8((const float *)weight, panels, scales, shifts, outputs, inputs, threads);
}

void kvasir_linear_int8(int is_bf16, const void *x, const int8_t *panels, const float *scales, const int32_t *shifts,
                        const float *bias, void *out, int64_t rows, int64_t outputs, int64_t inputs, int threads) {
    const Int8Weight weight{panels, scales, shifts, bias, outputs, inputs};
    is_bf16 ? linear_int8((const bf16 *)x, weight, (bf16 *)out, rows, threads)
            : linear_int8((const float *)x, weight, (float *)out, rows, threads);
}
}
