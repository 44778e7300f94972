/* Reads a buffer much larger than any cache with several threads, and prints the median bandwidth of all
 * passes, in bytes/s.
 * Usage: read_bandwidth THREADS MEBIBYTES PASSES
 * Decoding reads every weight once per step; this is the fastest that those reads can be. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { STREAMS = 4 }; /* more streams than one keep more of the memory's banks busy */

struct part {
    const uint64_t *start;
    size_t words;
    uint64_t sum;
};

static void *read_part(void *argument) {
    struct part *part = argument;
    const size_t stride = part->words / STREAMS;
    const uint64_t *words = part->start;
    uint64_t sums[STREAMS][8] = {{0}};
    for (size_t i = 0; i < stride; i += 8)
        for (int s = 0; s < STREAMS; s++)
            for (int lane = 0; lane < 8; lane++) sums[s][lane] += words[s * stride + i + lane];
    for (int s = 0; s < STREAMS; s++)
        for (int lane = 0; lane < 8; lane++) part->sum += sums[s][lane];
    return NULL;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static int by_size(const void *left, const void *right) {
    const double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static int one_pass(struct part *parts, int threads) {
    pthread_t ids[threads];
    for (int t = 1; t < threads; t++)
        if (pthread_create(&ids[t], NULL, read_part, &parts[t])) return 1;
    read_part(&parts[0]);
    for (int t = 1; t < threads; t++) pthread_join(ids[t], NULL);
    return 0;
}

int main(int count, char **arguments) {
    const int threads = count == 4 ? atoi(arguments[1]) : 0;
    const size_t bytes = count == 4 ? (size_t)atol(arguments[2]) << 20 : 0;
    const int passes = count == 4 ? atoi(arguments[3]) : 0;
    if (threads < 1 || bytes == 0 || passes < 1) {
        fprintf(stderr, "usage: read_bandwidth THREADS MEBIBYTES PASSES\n");
        return 2;
    }
    uint64_t *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    madvise(buffer, bytes, MADV_HUGEPAGE);
    memset(buffer, 1, bytes);
    struct part parts[threads];
    const size_t words = bytes / sizeof(uint64_t) / threads / (8 * STREAMS) * (8 * STREAMS);
    double rates[passes];
    uint64_t check = 0;
    for (int pass = 0; pass < passes; pass++) {
        for (int t = 0; t < threads; t++) parts[t] = (struct part){buffer + t * words, words, 0};
        const double start = now();
        if (one_pass(parts, threads)) {
            perror("pthread_create");
            return 1;
        }
        rates[pass] = words * threads * sizeof(uint64_t) / (now() - start);
        for (int t = 0; t < threads; t++) check += parts[t].sum;
    }
    if (check != (uint64_t)passes * threads * words * UINT64_C(0x0101010101010101)) {
        fprintf(stderr, "wrong sum: the compiler or the memory is broken\n");
        return 1;
    }
    qsort(rates, passes, sizeof *rates, by_size);
    printf("%.0f\n", rates[passes / 2]);
    return 0;
}
