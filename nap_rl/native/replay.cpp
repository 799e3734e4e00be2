// What `Priorities.sample`, `Priorities.update` and `Replay.gather` do, and say why.

#include <algorithm>
#include <cstdint>
#include <vector>

extern "C" {

// Slots [batch] and their probabilities. An item weighs leaf + c * valid, both [blocks, length], and `mass` [blocks] are
// the sums of these. u [2, batch] in [0, 1) choose the block and the leaf.
void replay_draw(int64_t blocks, int64_t length, const double* mass, const float* leaves, const float* valid, double c,
          int64_t batch, const double* u, int64_t* slots, float* probabilities) {
    std::vector<double> cumulative(blocks), within(length);
    double total = 0.0;
    for (int64_t b = 0; b < blocks; b++) cumulative[b] = total += mass[b];
    // The first of the cumulative weights above the target: its own weight is above zero.
    for (int64_t i = 0; i < batch; i++) {
        slots[i] = std::upper_bound(cumulative.begin(), cumulative.end(), u[i] * total) - cumulative.begin();
        for (int64_t at = slots[i] * length, end = at + length; at < end; at += 16) {  // 64 bytes: wait for all at once
            __builtin_prefetch(leaves + at);
            __builtin_prefetch(valid + at);
        }
    }
    for (int64_t i = 0; i < batch; i++) {
        const float* leaf = leaves + slots[i] * length;
        const float* can = valid + slots[i] * length;
        double sum = 0.0;
        for (int64_t j = 0; j < length; j++) within[j] = sum += double(leaf[j]) + c * double(can[j]);
        const int64_t j = std::upper_bound(within.begin(), within.end(), u[batch + i] * sum) - within.begin();
        slots[i] = slots[i] * length + j;
        probabilities[i] = float((double(leaf[j]) + c * double(can[j])) / total);
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

// New leaves of slots [batch], and the sums of their blocks anew. Entries that are not kept change nothing; of several
// for one slot the largest counts.
void replay_update(int64_t batch, const int64_t* slots, const float* entries, const bool* keep, int64_t length, float* leaves,
            double* leaf_sums) {
    for (int64_t i = 0; i < batch; i++)
        if (keep[i]) leaves[slots[i]] = -1.0f;  // loses to every entry
    for (int64_t i = 0; i < batch; i++)
        if (keep[i] && !(entries[i] <= leaves[slots[i]])) leaves[slots[i]] = entries[i];
    for (int64_t i = 0; i < batch; i++) {
        if (!keep[i]) continue;
        const float* leaf = leaves + slots[i] / length * length;
        double sum = 0.0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < length; j++) sum += double(leaf[j]);
        leaf_sums[slots[i] / length] = sum;
    }
}
}
