//! The numbers that weights, keys and values are held in.

use half::{bf16, f16};

/// Numbers worked on together, in every sum and on every processor.
pub(crate) const LANES: usize = 16;

/// As many numbers.
pub(crate) type Lanes = [f32; LANES];

/// A number that is held in fewer bits than it is computed with.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    /// The number itself.
    fn widen(self) -> f32;

    /// The nearest number that can be held; ties go to the even one.
    fn narrow(value: f32) -> Self;
}

/// The numbers themselves.
#[inline(always)]
pub(super) fn widen<E: Element>(numbers: &[E; LANES]) -> Lanes {
    let mut lanes = Lanes::default();
    for lane in 0..LANES {
        lanes[lane] = numbers[lane].widen();
    }
    lanes
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
