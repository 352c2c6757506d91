//! What this processor can do.

use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
use super::amx_tiles;

/// The instructions that kernels are chosen by. One that is not portable can
/// only be had where its instructions were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Level(Tier);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// What [`Tier::Avx512`] has, and AMX.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Level {
    /// All that this processor can do, the slowest first.
    pub(crate) fn all() -> &'static [Self] {
        static ALL: LazyLock<Vec<Level>> = LazyLock::new(Level::find);
        &ALL
    }

    fn find() -> Vec<Self> {
        #[cfg(not(target_arch = "x86_64"))]
        return vec![Self(Tier::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            let mut all = vec![Self(Tier::Portable)];
            all.extend(avx2.then_some(Self(Tier::Avx2)));
            if avx2 && avx512 {
                all.push(Self(Tier::Avx512));
                all.extend(amx_tiles::is_there().then_some(Self(Tier::Amx)));
            }
            all
        }
    }

    /// The fastest that this processor can do.
    pub(crate) fn best() -> Self {
        Self::all().last().copied().unwrap_or(Self(Tier::Portable))
    }

    pub(super) fn tier(self) -> Tier {
        self.0
    }
}

/// Compiles a function for every level and adds a first argument `level` that
/// chooses. The body is plain Rust, which never reorders or fuses arithmetic,
/// so all levels give the same bits.
macro_rules! for_each_level {
    ($(#[$doc:meta])* $vis:vis fn $name:ident $(<$e:ident: $bound:path>)? (
        $($arg:ident: $type:ty),* $(,)?
    ) $body:block) => {
        $(#[$doc])*
        $vis fn $name $(<$e: $bound>)? (level: $crate::kernels::Level, $($arg: $type),*) {
            #[inline(always)]
            fn portable $(<$e: $bound>)? ($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2 $(<$e: $bound>)? ($($arg: $type),*) {
                portable($($arg),*);
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512 $(<$e: $bound>)? ($($arg: $type),*) {
                portable($($arg),*);
            }

            match level.tier() {
                $crate::kernels::level::Tier::Portable => portable($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the level exists only where these instructions do
                $crate::kernels::level::Tier::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above
                $crate::kernels::level::Tier::Avx512 | $crate::kernels::level::Tier::Amx => unsafe { avx512($($arg),*) },
            }
        }
    };
}

pub(super) use for_each_level;
