// What this processor can run, asked before a library of a higher level is opened.
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

enum Answer { NO = 0, YES = 1, WITHHELD = 2 };  // withheld: the processor has it, the system does not hand it out

#if defined(__x86_64__)
// By number and not by name, so that compilers which do not know AMX build the lower levels.
bool processor_has_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const unsigned bf16_and_tiles = 1u << 22 | 1u << 24;
  return (d & bf16_and_tiles) == bf16_and_tiles;
}

bool system_keeps_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const unsigned config_and_data = 3u << 17;
  return (low & config_and_data) == config_and_data;
}

// Linux hands out the tiles' data on request, to a process and all of its threads.
bool permitted() {
#if defined(__linux__)
  constexpr long request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
  return false;
#endif
}

Answer tiles() {
  if (!processor_has_tiles()) return NO;
  return system_keeps_tiles() && permitted() ? YES : WITHHELD;
}
#endif

}  // namespace

// Raised whenever a struct or a function that Python knows of changes: `INTERFACE` of kernels/native/library.py.
extern "C" int headwise_interface() { return 13; }

extern "C" int headwise_supports(const char* level) {
  if (!std::strcmp(level, "baseline") || !std::strcmp(level, "amx_emulated")) return YES;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool avx512bf16 =
      avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
      __builtin_cpu_supports("avx512vbmi");
  if (!std::strcmp(level, "avx2")) return avx2;
  if (!std::strcmp(level, "avx512")) return avx512;
  if (!std::strcmp(level, "avx512bf16")) return avx512bf16;
  if (!std::strcmp(level, "amx")) return avx512bf16 ? tiles() : NO;
#endif
  return NO;
}
