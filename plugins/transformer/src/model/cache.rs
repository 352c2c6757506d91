//! Keys and values of the positions a sequence has been through.

use std::sync::Arc;

use crate::kernels::{Layout, Level, Memory, PAGE, Page, Panel};

/// One sequence's keys and values, in pages that are made as they are needed.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    layout: Layout,
    memory: Memory,
    pages: Vec<Arc<Page>>,
    len: usize,
}

/// Positions of one page that a step fills.
pub(super) struct Filling<'a> {
    page: &'a mut Arc<Page>,
    /// Pages before it.
    index: usize,
    /// The first of them, in the page.
    position: usize,
    /// Rows of the step that they come from.
    rows: std::ops::Range<usize>,
}

impl Cache {
    /// A cache with nothing in it.
    pub(super) fn new(layout: Layout, memory: Memory) -> Self {
        Self {
            layout,
            memory,
            pages: Vec::new(),
            len: 0,
        }
    }

    /// Positions held: the one that comes next has this number.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Begins with pages that are full.
    pub(crate) fn resume(&mut self, pages: Vec<Arc<Page>>) {
        self.len = pages.len() * PAGE;
        self.pages = pages;
    }

    /// The pages, of which only copies may be put in their place.
    pub(crate) fn pages_mut(&mut self) -> &mut [Arc<Page>] {
        &mut self.pages
    }

    /// Forgets positions from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    pub(super) fn pages(&self) -> &[Arc<Page>] {
        &self.pages
    }

    /// Takes pages for `count` more positions.
    pub(super) fn grow(&mut self, count: usize) {
        self.len += count;
        while self.pages.len() * PAGE < self.len {
            self.pages
                .push(Arc::new(Page::new(self.layout, &self.memory)));
        }
    }

    /// The places of the last `count` positions, which come from the rows of a
    /// step from `first` on.
    pub(super) fn last(&mut self, count: usize, first: usize) -> impl Iterator<Item = Filling<'_>> {
        let (start, end) = (self.len - count, self.len);
        let pages = self.pages.iter_mut().enumerate().skip(start / PAGE);
        pages.map(move |(index, page)| {
            let from = start.max(index * PAGE);
            let to = end.min((index + 1) * PAGE);
            Filling {
                page,
                index,
                position: from - index * PAGE,
                rows: first + from - start..first + to - start,
            }
        })
    }
}

impl Filling<'_> {
    /// Writes a layer's keys and values, each `width` wide, out of the rows of
    /// `wide`, where they stand from `column` on. `ready` gets the keys of a row
    /// as they are to be kept, and the position that they are at.
    pub(super) fn write(
        &mut self,
        level: Level,
        layer: usize,
        wide: &Panel,
        (column, width): (usize, usize),
        ready: impl Fn(usize, &mut [f32]),
    ) {
        // a page that another sequence has too is copied first
        let page = Arc::make_mut(self.page);
        let (mut keys, mut values) = (vec![0.0; width], vec![0.0; width]);
        for (offset, row) in self.rows.clone().enumerate() {
            wide.read(row, column, &mut keys);
            wide.read(row, column + width, &mut values);
            let position = self.position + offset;
            ready(self.index * PAGE + position, &mut keys);
            page.write(level, layer, position, &keys, &values);
        }
    }
}
