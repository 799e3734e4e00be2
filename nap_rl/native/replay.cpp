// What `Priorities.sample`, `Priorities.update`, `Replay.gather` and `Replay.update` do, and say why.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "functions.h"

namespace nap_rl {

// Slots [batch] and their probabilities. An item weighs leaf + c * valid, both [blocks, length], where c is such that the
// second ones have the share `uniform` of all; sums of both over a block are given. u [2, batch] in [0, 1) choose the block
// and the leaf.
void replay_draw(int64_t blocks, int64_t length, const double* leaf_sums, const double* valid_counts, const float* leaves,
                 const float* valid, double uniform, int64_t batch, const double* u, int64_t* slots,
                 float* probabilities) {
    std::vector<double> cumulative(blocks), within(length);
    const double leaf_share = uniform < 1.0 ? 1.0 : 0.0;
    double c = 1.0;  // where every priority is zero, sampling is uniform
    if (const double sum = std::accumulate(leaf_sums, leaf_sums + blocks, 0.0); leaf_share > 0.0 && sum > 0.0)
        c = sum * (uniform / (1.0 - uniform)) / std::accumulate(valid_counts, valid_counts + blocks, 0.0);
    const auto weight = [=](float leaf, float can) { return leaf_share * double(leaf) + c * double(can); };
    double total = 0.0;
    for (int64_t b = 0; b < blocks; b++) cumulative[b] = total += leaf_share * leaf_sums[b] + c * valid_counts[b];
    // The first of the cumulative weights above the target: its own weight is above zero. Targets are below the total
    // also after rounding.
    const auto target = [=](int64_t i) { return std::min(u[i], 1.0 - 0x1p-52); };
    for (int64_t i = 0; i < batch; i++) {
        slots[i] = std::upper_bound(cumulative.begin(), cumulative.end(), target(i) * total) - cumulative.begin();
        for (int64_t at = slots[i] * length, end = at + length; at < end; at += 16) {  // 64 bytes: wait for all at once
            __builtin_prefetch(leaves + at);
            __builtin_prefetch(valid + at);
        }
    }
    for (int64_t i = 0; i < batch; i++) {
        const float* leaf = leaves + slots[i] * length;
        const float* can = valid + slots[i] * length;
        double sum = 0.0;
        for (int64_t j = 0; j < length; j++) within[j] = sum += weight(leaf[j], can[j]);
        const int64_t j = std::upper_bound(within.begin(), within.end(), target(batch + i) * sum) - within.begin();
        slots[i] = slots[i] * length + j;
        probabilities[i] = float(weight(leaf[j], can[j]) / total);
    }
}

// Of valid starts, slots [batch]: the n-step return r_t, its discount_t, and which frames its two stacks are made of,
// frames [2, batch, stack]. A column of the ring has `length` slots; see the picture at the head of buffer.py.
void replay_windows(int64_t batch, const int64_t* slots, int64_t length, int64_t stack, int64_t n_steps, int64_t zero_slot,
                    const bool* first, const float* rewards, const float* discounts, float discount, float reward_clip,
                    float* r_t, float* discount_t, int64_t* frames) {
    for (int64_t b = 0; b < batch; b++) {
        const int64_t place = slots[b] % length, column = slots[b] - place;
        const auto at = [=](int64_t offset) { return column + (place + offset + length) % length; };
        // Steps to the bootstrap state: until n, or the slot where another episode begins.
        float total = 0.0f, product = 1.0f;
        int64_t m = 0;
        while (m < n_steps && !first[at(m + 1)]) {
            const float reward = rewards[at(m)];
            total += product * std::min(std::max(reward, -reward_clip), reward_clip);
            product *= discount * discounts[at(m)];
            m++;
        }
        r_t[b] = total;
        discount_t[b] = product;
        // Frames before the episode's first one are the zero frame.
        int64_t begin = 0;
        while (begin > 1 - stack && !first[at(begin)]) begin--;
        int64_t* s_tm1 = frames + b * stack;
        int64_t* s_t = frames + (batch + b) * stack;
        for (int64_t k = 0; k < stack; k++) {
            const int64_t now = k - (stack - 1), later = now + m;
            s_tm1[k] = now < begin ? zero_slot : at(now);
            s_t[k] = later < begin ? zero_slot : at(later);
        }
    }
}

// Stacks [2, batch, stack, size] of frames. A thread copies both of a transition: it also computes with them.
void replay_stacks(int64_t batch, int64_t stack, int64_t size, const int64_t* slots, const char* frames, char* stacks,
                   int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t at : {b * stack, (batch + b) * stack})
            for (int64_t k = at; k < at + stack; k++) std::memcpy(stacks + k * size, frames + slots[k] * size, size);
}

// Which of slots [batch] are what they were when they were drawn, and valid yet; priorities, clipped, and their largest.
void replay_kept(int64_t batch, const int64_t* slots, const int64_t* serials, const int64_t* serials_now,
                 const float* valid, float max_priority, float* priorities, bool* keep, float* largest) {
    for (int64_t i = 0; i < batch; i++) {
        float& priority = priorities[i];
        priority = priority < 0.0f ? 0.0f : priority > max_priority ? max_priority : priority;
        keep[i] = serials_now[slots[i]] == serials[i] && valid[slots[i]] > 0.0f;
        if (keep[i] && !(priority <= *largest)) *largest = priority;
    }
}

// New leaves priority^exponent of slots [batch], and the sums of their blocks anew. Entries that are not kept change
// nothing; of several for one slot the largest counts.
void replay_update(int64_t batch, const int64_t* slots, const float* priorities, const bool* keep, float exponent,
                   int64_t length, float* leaves, double* leaf_sums) {
    for (int64_t i = 0; i < batch; i++)
        if (keep[i]) leaves[slots[i]] = -1.0f;  // loses to every entry
    for (int64_t i = 0; i < batch; i++) {
        if (!keep[i]) continue;
        const float entry = std::pow(priorities[i], exponent);
        if (!(entry <= leaves[slots[i]])) leaves[slots[i]] = entry;
    }
    for (int64_t i = 0; i < batch; i++) {
        if (!keep[i]) continue;
        const float* leaf = leaves + slots[i] / length * length;
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < length; j++) sum += double(leaf[j]);
        leaf_sums[slots[i] / length] = sum;
    }
}

}  // namespace nap_rl
