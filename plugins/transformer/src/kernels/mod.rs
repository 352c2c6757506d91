//! The arithmetic, on plain slices.
//!
//! - `team`: the threads that share it
//! - `matrix`: weights, packed; `product` is what they are for; `quantized` and
//!   `nibbles` are their forms in 8 and in 4 bits
//! - `page`: keys and values, and `attention`: looking them up
//! - `memory`: where both lie
//! - `vector`: the rest, and `rows`: what Llama adds to it; `panel`: rows as
//!   products leave them
//! - `level`: which instructions; `avx2`, `avx512` and `amx` with `amx_tiles`, and
//!   `avx2_attention` and `avx512_attention`, have those that the compiler does not find by
//!   itself
//!
//! Every sum has one order, whatever else is computed beside it: a row of a
//! batch gives the same bits as the row alone.
#![expect(
    unsafe_code,
    reason = "vector instructions that are there only on some processors, and threads that share \
              what the caller borrowed"
)]
#![expect(
    clippy::needless_range_loop,
    reason = "iterators do not always become part of a function that has more instructions"
)]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod amx_tiles;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_attention;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_attention;
mod element;
mod level;
mod matrix;
mod memory;
mod nibbles;
mod page;
mod panel;
mod product;
mod quantized;
mod rows;
mod team;
#[cfg(test)]
mod tests;
mod vector;

pub(crate) use attention::{Scratch, Seen, attend};
pub(crate) use element::{Element, Lanes};
pub(crate) use level::Level;
pub(crate) use matrix::{Dtype, Input, Matrix, Order};
pub(crate) use memory::Memory;
pub(crate) use page::{Layout, PAGE, Page};
pub(crate) use panel::Panel;
pub(crate) use product::Base;
pub(crate) use quantized::GROUP;
pub(crate) use rows::{gelu_tanh_gate, normalize_rms, rotate, silu_gate};
pub(crate) use team::Team;
pub(crate) use vector::{gelu, gelu_tanh, normalize, relu};
