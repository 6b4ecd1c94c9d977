/*
 * Included before every C++ file when llama.cpp is compiled (see the Makefile), for what goes wrong on new processors.
 */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
/*
 * Older versions of GCC, such as Debian 12's, believe that _tile_loadconfig reads 8 bytes. It reads 64, so they leave
 * out what llama.cpp writes to the others, and its first product of matrices on a CPU with AMX is a segmentation fault.
 */
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg\t%X0" : : "m"(*(const char (*)[64])(config)))
#endif
#ifdef __AVX512FP16__
/*
 * With it llama.cpp computes 128 half-precision numbers at a time, and attention heads of 64 one number after the other,
 * as what is left over. Without it, it computes 64 at a time, and adds them up in single precision.
 */
#include <immintrin.h>
#undef __AVX512FP16__
#endif
