// The kernels of fanin in C++, to compare with: the same arithmetic, tile by tile, in GCC's vectors.
// `benchmarks/fill.py --cpp` writes the tables of fanin/_rng/coefficients.py to tables.h, compiles
// this file and checks that every bit is fanin's.

#include <cstdint>
#include <cstring>

#include "tables.h"

constexpr int LANES = 16;
typedef uint64_t U64 __attribute__((vector_size(8 * LANES)));
typedef uint32_t U32 __attribute__((vector_size(4 * LANES)));
typedef int32_t I32 __attribute__((vector_size(4 * LANES)));
typedef float F32 __attribute__((vector_size(4 * LANES)));

static inline F32 real(I32 x) { return __builtin_convertvector(x, F32); }

template <int N>
static inline F32 polynomial(const float (&c)[N], F32 x) {
    F32 value = x - x + c[N - 1];
#pragma GCC unroll 16
    for (int i = N - 2; i >= 0; i--) value = value * x + c[i];
    return value;
}

static inline F32 root(F32 x) {
    F32 y;
    for (int j = 0; j < LANES; j++) y[j] = __builtin_sqrtf(x[j]);
    return y;
}

static inline F32 clip(F32 x, float least, float greatest) {
    F32 low = least + (x - x), high = greatest + (x - x);
    x = x < low ? low : x;
    return x > high ? high : x;
}

static inline void philox(U64 block, uint64_t row, const uint32_t* key, U32* words) {
    constexpr uint64_t LOW = 0xFFFFFFFF;
    U64 zero = block - block, c0 = block, c1 = zero + row, c2 = zero + key[2], c3 = zero + key[3];
#pragma GCC unroll 10
    for (uint64_t turn = 0; turn < 10; turn++) {
        U64 p0 = (c0 & LOW) * 0xD2511F53u, p1 = (c2 & LOW) * 0xCD9E8D57u;
        c0 = (p1 >> 32) ^ c1 ^ ((key[0] + turn * 0x9E3779B9u) & LOW);
        c2 = (p0 >> 32) ^ c3 ^ ((key[1] + turn * 0xBB67AE85u) & LOW);
        c1 = p1, c3 = p0;
    }
    words[0] = __builtin_convertvector(c0, U32);
    words[1] = __builtin_convertvector(c1, U32);
    words[2] = __builtin_convertvector(c2, U32);
    words[3] = __builtin_convertvector(c3, U32);
}

static inline F32 radius(U32 word) {
    I32 h = (I32)(word >> 1);
    U32 bits = (U32)(real(h) + 0.5f);
    I32 exponent = (I32)(bits - 0x3F2AAAABu) >> 23;
    F32 mantissa = (F32)(bits - ((U32)exponent << 23));
    F32 complement = real(0x7FFFFFFF - h) + 0.5f;
    F32 t = exponent == 31 ? complement * -0x1p-31f : mantissa - 1.0f;
    F32 log = real(exponent - 31) * LN2 + (t * t * polynomial(LOG_32, t) + t);
    return root(log * -2.0f);
}

static inline void normal(const U32* words, const double* numbers, F32* out) {
    float std = numbers[0], mean = numbers[1];
    for (int pair = 0; pair < 4; pair += 2) {
        F32 r = radius(words[pair]);
        U32 word = words[pair + 1];
        F32 y = real((I32)(word << 2)) * 0x1p-31f, square = y * y;
        F32 sine = polynomial(SIN_32, square) * y;
        F32 cosine = (F32)((U32)polynomial(COS_32, square) ^ (word & 0x80000000u));
        I32 swap = (word & 0x40000000u) != 0;
        out[pair] = r * (swap ? cosine : sine) * std + mean;
        out[pair + 1] = r * (swap ? sine : cosine) * std + mean;
    }
}

static inline void uniform(const U32* words, const double* numbers, F32* out) {
    float half = numbers[0], middle = numbers[1];
    for (int lane = 0; lane < 4; lane++) {
        F32 unit = real((I32)words[lane]) * 0x1p-31f;
        out[lane] = clip(unit * half + middle, numbers[2], numbers[3]);
    }
}

static inline void truncated(const U32* words, const double* numbers, F32* out) {
    float scale = numbers[0] * 0x1p-31, outside = numbers[1], sigma = numbers[2], mean = numbers[3];
    for (int lane = 0; lane < 4; lane++) {
        I32 k = (I32)words[lane], size = k >= 0 ? k : ~k;
        F32 y = (real(size) + 0.5f) * scale;
        F32 g = (outside + (real(0x7FFFFFFF - size) + 0.5f) * scale) * (1.0f + y);
        F32 z = polynomial(UPPER_3, g) * y / polynomial(LOWER_3, g);
        z = k >= 0 ? z : -z;
        out[lane] = clip(z * sigma + mean, numbers[4], numbers[5]);
    }
}

template <void transform(const U32*, const double*, F32*)>
static void fill(float* out, int64_t rows, int64_t columns, const uint32_t* key, const double* numbers) {
    U64 places;
    for (int j = 0; j < LANES; j++) places[j] = j;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t tile = 0; tile < columns / 64; tile++, out += 64) {
            U32 words[4];
            F32 values[4];
            philox(places + (uint64_t)(LANES * tile), row, key, words);
            transform(words, numbers, values);
            std::memcpy(out, values, sizeof values);
        }
}

#define LAW(name)                                                                                \
    extern "C" void fill_##name(float* out, int64_t rows, int64_t columns, const uint32_t* key, \
                                const double* numbers) {                                         \
        fill<name>(out, rows, columns, key, numbers);                                            \
    }
LAW(normal)
LAW(uniform)
LAW(truncated)
