//! The numbers that weights, keys and values are held in.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _mm_loadu_si128, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_slli_epi32, _mm512_castsi512_ps,
    _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_loadu_ps, _mm512_slli_epi32,
};

use half::{bf16, f16};

use super::memory::Plain;

/// Numbers worked on together, in every sum and on every processor.
pub(crate) const LANES: usize = 16;

/// As many numbers.
pub(crate) type Lanes = [f32; LANES];

/// A number that is held in fewer bits than it is computed with.
pub(crate) trait Element: Plain + Copy + Default {
    /// The number itself.
    fn widen(self) -> f32;

    /// The nearest number that can be held; ties go to the even one.
    fn narrow(value: f32) -> Self;

    /// [`Element::widen`] of 16 numbers, the lower 8 and the upper.
    ///
    /// # Safety
    /// The processor has AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_256(numbers: &[Self; LANES]) -> [__m256; 2];

    /// [`Element::widen`] of 16 numbers.
    ///
    /// # Safety
    /// The processor has AVX-512F.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load_512(numbers: &[Self; LANES]) -> __m512;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn load_256(numbers: &[Self; LANES]) -> [__m256; 2] {
        let (low, high) = numbers.split_at(LANES / 2);
        // SAFETY: there are 8 numbers at each
        unsafe {
            [
                _mm256_loadu_ps(low.as_ptr()),
                _mm256_loadu_ps(high.as_ptr()),
            ]
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load_512(numbers: &[Self; LANES]) -> __m512 {
        // SAFETY: there are 16 numbers
        unsafe { _mm512_loadu_ps(numbers.as_ptr()) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn load_256(numbers: &[Self; LANES]) -> [__m256; 2] {
        let (low, high) = numbers.split_at(LANES / 2);
        // SAFETY: there are 8 numbers at each
        unsafe {
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(
                    _mm_loadu_si128(low.as_ptr().cast()),
                ))),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(
                    _mm_loadu_si128(high.as_ptr().cast()),
                ))),
            ]
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load_512(numbers: &[Self; LANES]) -> __m512 {
        // SAFETY: there are 16 numbers
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
                _mm256_loadu_si256(numbers.as_ptr().cast()),
            )))
        }
    }
}

/// Finite numbers only, and without a branch, so that loops over them become
/// vector code; what is out of range becomes the largest that is in it, and
/// below the normal range a number just beside a tie may go to the other side.
impl Element for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        // sign, exponent and mantissa to their places; the product moves the exponent's bias
        let bits = i32::from(self.to_bits().cast_signed()) << 13;
        f32::from_bits(bits.cast_unsigned() & 0x8FFF_E000) * f32::from_bits((127 + 112) << 23)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let scaled = value.clamp(-65504.0, 65504.0) * f32::from_bits((127 - 112) << 23);
        let bits = scaled.to_bits();
        let rounded = (bits & 0x7FFF_FFFF) + 0x0FFF + ((bits >> 13) & 1);
        Self::from_bits((rounded >> 13) as u16 | (bits >> 16) as u16 & 0x8000)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn load_256(numbers: &[Self; LANES]) -> [__m256; 2] {
        let (low, high) = numbers.split_at(LANES / 2);
        // SAFETY: there are 8 numbers at each
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast())),
            ]
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn load_512(numbers: &[Self; LANES]) -> __m512 {
        // SAFETY: there are 16 numbers
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(numbers.as_ptr().cast())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_and_narrowed_exactly() {
        let finite = (0..=u16::MAX)
            .map(f16::from_bits)
            .filter(|half| half.is_finite());
        for half in finite {
            assert_eq!(half.widen().to_bits(), half.to_f32().to_bits(), "{half}");
            assert_eq!(<f16 as Element>::narrow(half.to_f32()), half);
        }
    }

    #[test]
    fn halves_are_rounded_as_the_standard_says() {
        // every exponent, and mantissas beside the ties
        for exponent in 127 - 30..127 + 16 {
            let ties = [0x1000, 0x3000, 0x0FFF, 0x1001];
            for mantissa in (0..1 << 23).step_by(997).chain(ties) {
                let value = f32::from_bits(exponent << 23 | mantissa);
                if exponent < 127 - 14 {
                    let off = <f16 as Element>::narrow(value).to_f32() - value;
                    assert!(off.abs() < 0.501 * 2_f32.powi(-24), "{value}");
                    continue;
                }
                let theirs = f16::from_f32(value);
                let theirs = if theirs.is_finite() { theirs } else { f16::MAX };
                assert_eq!(<f16 as Element>::narrow(value), theirs, "{value}");
                assert_eq!(<f16 as Element>::narrow(-value), -theirs, "{value}");
            }
        }
    }
}
