// What driver.cpp is made with: random numbers, arrays whose end is guarded, and comparisons.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <string>

namespace {

// ---- Random numbers ----

std::mt19937 generator;

int64_t any_of(int64_t low, int64_t high) { return low + static_cast<int64_t>(generator() % (high - low + 1)); }
bool one_in(int64_t n) { return any_of(1, n) == 1; }
// A multiple of `step`, which is a power of two.
float any_step(float low, float high, float step) { return low + step * any_of(0, std::llround((high - low) / step)); }
template <typename T, size_t kCount>
T choose(const T (&from)[kCount]) {
  return from[any_of(0, kCount - 1)];
}

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
constexpr float kWild[] = {kNaN, kInfinity, -kInfinity, 1e30f, -1e30f};
constexpr float kNotFinite[] = {kNaN, kInfinity, -kInfinity};

// ---- Arrays ----

// An array that ends where memory begins that cannot be touched. All bits are set at first, which is NaN.
template <typename T>
class Array {
 public:
  explicit Array(int64_t count) : count_(count) {
    const size_t page = sysconf(_SC_PAGESIZE), bytes = (count * sizeof(T) + page - 1) / page * page;
    size_ = bytes + page;
    memory_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED || mprotect(memory_ + bytes, page, PROT_NONE))
      std::abort();
    std::memset(memory_, 0xff, bytes);
    data_ = reinterpret_cast<T*>(memory_ + bytes) - count;
  }
  Array(const Array&) = delete;
  ~Array() { munmap(memory_, size_); }
  T* begin() const { return data_; }
  T* end() const { return data_ + count_; }
  int64_t size() const { return count_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t count_;
  size_t size_;
  char* memory_;
  T* data_;
};

// As large as the operators allocate it, in whole cache lines.
template <typename T>
Array<T> scratch_array(int64_t count) {
  return Array<T>((count * sizeof(T) / 64 + 1) * 64 / sizeof(T));
}

float as_float(float number) { return number; }
float as_float(uint16_t bfloat16) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof(number));
  return number;
}

// Any floats or bfloat16 between -1 and 1.
template <typename Scalar>
void fill(const Array<Scalar>& array) {
  for (Scalar& number : array) {
    const float drawn = any_step(-1.0f, 1.0f, 1.0f / (1 << 22));
    std::memcpy(&number, reinterpret_cast<const char*>(&drawn) + sizeof(float) - sizeof(Scalar), sizeof(Scalar));
  }
}

// ---- Comparisons ----

std::map<std::string, double> worst;  // error of everything that is compared
bool failed = false;

void note(const std::string& what, double error, double tolerance, const std::string& problem) {
  worst[what] = std::max(worst[what], error);
  if (error <= tolerance)
    return;
  failed = true;
  std::printf("wrong: %s is off by %g in %s\n", what.c_str(), error, problem.c_str());
}

// The largest error is relative to the largest number (0.1 if all are smaller, as what remains of a difference can be),
// and infinite if not the same elements are NaN.
template <typename T>
void compare(const std::string& what, const Array<T>& actual, const Array<T>& expected, double tolerance,
             const std::string& problem) {
  double error = 0.0, largest = 0.1;
  for (int64_t i = 0; i < expected.size(); ++i) {
    const double a = as_float(actual[i]), b = as_float(expected[i]);
    if (std::isfinite(b))
      largest = std::max(largest, std::abs(b));
    if (std::isnan(a) != std::isnan(b))
      error = kInfinity;
    else if (a != b && !std::isnan(b))
      error = std::max(error, std::abs(a - b));
  }
  note(what, error / largest, tolerance, problem);
}

template <typename T>
void compare_exactly(const std::string& what, const Array<T>& actual, const Array<T>& expected,
                     const std::string& problem) {
  note(what, std::equal(expected.begin(), expected.end(), actual.begin()) ? 0.0 : kInfinity, 0.0, problem);
}

}  // namespace
