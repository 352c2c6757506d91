//! Memory in the system's large pages.
//!
//! A step reads all weights, and keys and values of all that came before. The
//! processor has to find out where each page of it is, and can remember 2,000 or
//! so: that is 8 MB in pages of 4 KiB, and 4 GB in pages of 2 MiB.

use std::any::TypeId;
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

/// Bytes of a large page.
const LARGE: usize = 1 << 21;
/// Bytes asked for at once. What is not used yet is an address and no memory.
const CHUNK: usize = 32 * LARGE;
/// Bytes of a line of the cache, where each piece begins.
const LINE: usize = 64;

/// Numbers, or arrays of them.
///
/// # Safety
/// Zeros are a value, and there is nothing to drop.
pub(crate) unsafe trait Plain: Send + Sync + 'static {}

// SAFETY: a number
unsafe impl Plain for f32 {}
// SAFETY: a number
unsafe impl Plain for half::f16 {}
// SAFETY: a number
unsafe impl Plain for half::bf16 {}
// SAFETY: what its items are
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Where pieces of memory come from. They go back to it, and it goes back to the
/// system after the last of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory(Arc<Mutex<Chunks>>);

#[derive(Debug, Default)]
struct Chunks {
    all: Vec<Chunk>,
    /// Bytes that are taken of the last one.
    taken: usize,
    /// Pieces that came back, by what they are of and how many.
    free: HashMap<(TypeId, usize), Vec<NonNull<u8>>>,
}

/// Bytes that were asked for at once: zeros, and no memory until they are touched.
#[derive(Debug)]
struct Chunk {
    /// Where its first large page begins, and bytes from there on.
    start: NonNull<u8>,
    len: usize,
    /// What gives it back to the system.
    _map: MmapMut,
}

/// A boxed slice out of [`Memory`].
#[derive(Debug)]
pub(super) struct Piece<T: Plain> {
    memory: Memory,
    start: NonNull<T>,
    len: usize,
}

// SAFETY: the pointers are those of memory that nobody else has
unsafe impl Send for Chunks {}
// SAFETY: it owns its items, as a box does
unsafe impl<T: Plain> Send for Piece<T> {}
// SAFETY: as above
unsafe impl<T: Plain> Sync for Piece<T> {}

impl Memory {
    fn chunks(&self) -> MutexGuard<'_, Chunks> {
        // nothing panics while it is changed
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chunks {
    /// So many bytes, a multiple of lines, that nobody has had.
    fn take(&mut self, bytes: usize) -> NonNull<u8> {
        let is_full = |chunk: &Chunk| self.taken + bytes > chunk.len;
        if self.all.last().is_none_or(is_full) {
            self.all.push(Chunk::new(bytes.max(CHUNK)));
            self.taken = 0;
        }
        let start = self.all[self.all.len() - 1].start;
        // SAFETY: the chunk has so much room
        let piece = unsafe { start.add(self.taken) };
        self.taken += bytes;
        piece
    }
}

impl Chunk {
    /// # Panics
    /// When the system has no more.
    fn new(bytes: usize) -> Self {
        let len = bytes.next_multiple_of(LARGE);
        let mut map = MmapMut::map_anon(len + LARGE).expect("memory for a model");
        let start = map.as_ptr().align_offset(LARGE);
        // a wish: where the system has no large pages it is refused, and nothing is amiss
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(memmap2::Advice::HugePage, start, len);
        Self {
            start: NonNull::from(&mut map[start..]).cast(),
            len,
            _map: map,
        }
    }
}

impl<T: Plain> Piece<T> {
    /// So many zeros, or, where a piece of this size came back, what it held.
    pub(super) fn new(memory: &Memory, len: usize) -> Self {
        assert!(align_of::<T>() <= LINE && !std::mem::needs_drop::<T>());
        let mut chunks = memory.chunks();
        let start = match chunks.free.get_mut(&Self::key(len)).and_then(Vec::pop) {
            Some(start) => start.cast(),
            None => {
                let bytes = len * size_of::<T>();
                chunks.take(bytes.next_multiple_of(LINE)).cast()
            }
        };
        drop(chunks);
        Self {
            memory: memory.clone(),
            start,
            len,
        }
    }

    /// What pieces have in common that can take each other's place.
    fn key(len: usize) -> (TypeId, usize) {
        (TypeId::of::<T>(), len)
    }
}

impl<T: Plain> Drop for Piece<T> {
    fn drop(&mut self) {
        let free = &mut self.memory.chunks().free;
        let alike = free.entry(Self::key(self.len)).or_default();
        alike.push(self.start.cast());
    }
}

impl<T: Plain + Clone> Clone for Piece<T> {
    fn clone(&self) -> Self {
        let mut piece = Self::new(&self.memory, self.len);
        piece.clone_from_slice(self);
        piece
    }
}

impl<T: Plain> Deref for Piece<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: there are `len` values, and it owns them
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Piece<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_apart_and_come_back() {
        let memory = Memory::default();
        let lens = [0, 1, 16, 17, 1000, CHUNK / 4 + 1, 5];
        let mut pieces: Vec<Piece<f32>> = lens.map(|len| Piece::new(&memory, len)).into();
        for (number, piece) in pieces.iter_mut().enumerate() {
            assert!(piece.iter().all(|&n| n == 0.0));
            assert!(piece.as_ptr().addr().is_multiple_of(LINE));
            piece.fill(number as f32);
        }
        for (number, (piece, len)) in pieces.iter().zip(lens).enumerate() {
            assert_eq!(piece.len(), len);
            assert!(piece.iter().all(|&n| n == number as f32));
        }
        let copy = pieces[4].clone();
        assert_eq!(*copy, *pieces[4]);

        let place = pieces.remove(3).as_ptr();
        // of the same size, and of something else
        let other = Piece::<[f32; 1]>::new(&memory, 17);
        assert_eq!(*other, [[0.0]; 17]);
        let again = Piece::<f32>::new(&memory, 17);
        assert_eq!((again.as_ptr(), &*again), (place, &[3.0; 17][..]));
        // what is left keeps the memory
        drop((memory, pieces));
        assert_eq!(copy[999], 4.0);
    }
}
