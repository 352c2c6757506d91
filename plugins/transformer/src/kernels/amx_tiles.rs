//! AMX's tiles: 16 rows of 64 bytes each, and what moves and multiplies them.
//!
//! Stable Rust has no names for these instructions yet: they are written out.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

use super::element::LANES;
use super::quantized::{GROUP, SHORT};

/// Rows of a tile.
pub(super) const ROWS: usize = 16;
/// Bytes of a tile's row, and from one to the next where they lie side by side.
pub(super) const ROW: usize = 64;
const _: () = assert!(GROUP == 2 * ROW && SHORT == ROW);

/// Sums of a group of inputs, a row for each row of inputs.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [[i32; LANES]; ROWS]);

/// How tiles are cut, as the processor reads it.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row, by tile.
    row_bytes: [u16; 16],
    /// Rows, by tile.
    rows: [u8; 16],
}

/// The thread's tiles are cut while this lives: 0 and 1 for sums, 2 and 3 for
/// inputs and weights of the first half of a group, 4 and 5 of the second, 6 and 7
/// for the lower bytes of inputs in 16 bits. What is in one stays there from one
/// instruction to the next: the compiler has no use for them.
pub(super) struct Tiles;

/// Asks the system for the tiles, for the whole process; false when it or the
/// processor has none.
pub(super) fn is_there() -> bool {
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & (TILE | INT8) != TILE | INT8 {
        return false;
    }
    #[cfg(target_os = "linux")]
    {
        // arch/x86/include/uapi/asm/prctl.h
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: it takes two numbers and changes no memory of ours
        let refused = unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                XFEATURE_XTILEDATA,
            )
        };
        refused == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

impl Tiles {
    /// Cuts the tiles for so many rows, 1 to 16.
    ///
    /// # Safety
    /// The processor and the system have AMX.
    pub(super) unsafe fn cut(rows: usize) -> Self {
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        config.row_bytes[..8].fill(ROW as u16);
        config.rows[..8].fill(rows as u8);
        config.rows[3] = ROWS as u8;
        config.rows[5] = ROWS as u8;
        // SAFETY: the configuration is one the processor knows
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: whoever has cut the tiles has the instruction too; left as
        // they are they would be saved at every change of threads
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Defines a function that moves the rows of tiles, `stride` bytes from each other.
macro_rules! moves {
    ($name:ident, $pointer:ty, $($instruction:literal),+) => {
        /// # Safety
        /// The tiles are cut, and so many rows are there, of 64 bytes in each tile.
        #[inline(always)]
        pub(super) unsafe fn $name(at: $pointer, stride: usize) {
            // SAFETY: the caller's promise
            unsafe {
                asm!($($instruction),+, at = in(reg) at, stride = in(reg) stride, options(nostack));
            }
        }
    };
}
// the second half of a group's weights is 16 rows further on, of its inputs in the same row
moves!(
    load_weights,
    *const [i8; ROW],
    "tileloadd tmm3, [{at} + {stride}*1]",
    "tileloadd tmm5, [{at} + {stride}*1 + 1024]"
);
moves!(
    load_inputs,
    *const [i32; GROUP / 4],
    "tileloadd tmm2, [{at} + {stride}*1]",
    "tileloadd tmm4, [{at} + {stride}*1 + 64]"
);
moves!(
    load_lower_inputs,
    *const [i32; GROUP / 4],
    "tileloadd tmm6, [{at} + {stride}*1]",
    "tileloadd tmm7, [{at} + {stride}*1 + 64]"
);
moves!(
    load_short_weights,
    *const [u8; ROW],
    "tileloadd tmm3, [{at} + {stride}*1]"
);
moves!(
    load_short_inputs,
    *const [i32; SHORT / 4],
    "tileloadd tmm2, [{at} + {stride}*1]"
);
moves!(
    store,
    *mut [i32; LANES],
    "tilestored [{at} + {stride}*1], tmm0"
);
moves!(
    store_lower,
    *mut [i32; LANES],
    "tilestored [{at} + {stride}*1], tmm1"
);

/// Defines a function that multiplies inputs and weights that were loaded.
macro_rules! multiplies {
    ($name:ident, $($instruction:literal),+) => {
        /// # Safety
        /// The tiles are cut and loaded.
        #[inline(always)]
        pub(super) unsafe fn $name() {
            // SAFETY: the caller's promise
            unsafe { asm!($($instruction),+, options(nostack, nomem)) };
        }
    };
}
multiplies!(
    multiply,
    "tilezero tmm0",
    "tdpbssd tmm0, tmm2, tmm3",
    "tdpbssd tmm0, tmm4, tmm5"
);
multiplies!(
    multiply_unsigned,
    "tilezero tmm0",
    "tdpbsud tmm0, tmm2, tmm3"
);
multiplies!(
    multiply_lower,
    "tilezero tmm1",
    "tdpbssd tmm1, tmm6, tmm3",
    "tdpbssd tmm1, tmm7, tmm5"
);
