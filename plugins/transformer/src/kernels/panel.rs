//! Rows of numbers as products leave them.

use super::element::{LANES, Lanes};

/// Some rows, held as 16 columns of all rows, then the next 16: what works on
/// some tiles of a matrix writes one run of it.
#[derive(Debug, Default)]
pub(crate) struct Panel {
    rows: usize,
    tiles: usize,
    /// Room for as many as there ever were.
    lanes: Vec<Lanes>,
}

impl Panel {
    /// Makes room for `rows` rows of `tiles` times 16 columns; what they hold is
    /// left from before.
    pub(crate) fn resize(&mut self, rows: usize, tiles: usize) {
        (self.rows, self.tiles) = (rows, tiles);
        if self.lanes.len() < rows * tiles {
            self.lanes.resize(rows * tiles, [0.0; LANES]);
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn lanes_mut(&mut self) -> &mut [Lanes] {
        &mut self.lanes[..self.rows * self.tiles]
    }

    /// Copies columns of a row from `column` on, as many as `to` takes.
    pub(crate) fn read(&self, row: usize, column: usize, to: &mut [f32]) {
        if column.is_multiple_of(LANES) {
            // whole lanes at a time are copied without a call
            let (whole, rest) = to.as_chunks_mut::<LANES>();
            let mut at = column / LANES * self.rows + row;
            for to in whole {
                *to = self.lanes[at];
                at += self.rows;
            }
            if !rest.is_empty() {
                rest.copy_from_slice(&self.lanes[at][..rest.len()]);
            }
            return;
        }
        let (mut tile, mut lane, mut to) = (column / LANES, column % LANES, to);
        while !to.is_empty() {
            let lanes = &self.lanes[tile * self.rows + row][lane..];
            let (now, later) = to.split_at_mut(lanes.len().min(to.len()));
            now.copy_from_slice(&lanes[..now.len()]);
            (tile, lane, to) = (tile + 1, 0, later);
        }
    }

    /// Sets a row; columns beyond `values` become 0.
    pub(crate) fn write(&mut self, row: usize, values: &[f32]) {
        let mut values = values.chunks(LANES);
        let rows = self.rows;
        for lanes in self.lanes_mut().iter_mut().skip(row).step_by(rows) {
            let values = values.next().unwrap_or_default();
            *lanes = [0.0; LANES];
            lanes[..values.len()].copy_from_slice(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_as_it_was_written() {
        let mut panel = Panel::default();
        panel.resize(3, 3);
        let rows: [Vec<f32>; 3] = std::array::from_fn(|row| {
            (0..40_i8)
                .map(|n| f32::from(n) + row as f32 * 100.0)
                .collect()
        });
        for (row, values) in rows.iter().enumerate() {
            panel.write(row, values);
        }
        for (row, values) in rows.iter().enumerate() {
            for (start, end) in [(0, 40), (8, 16), (13, 37), (39, 40)] {
                let mut read = vec![0.0; end - start];
                panel.read(row, start, &mut read);
                assert_eq!(read, values[start..end]);
            }
        }
    }
}
