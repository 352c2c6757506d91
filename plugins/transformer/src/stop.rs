//! Stop strings, wherever tokens end.

/// Passes text on up to the first stop string, and holds back an end of it that
/// may turn out to begin one.
///
/// Of several stop strings that overlap the one that ends first counts, so how
/// the text is cut into pieces changes nothing.
#[derive(Debug)]
pub(crate) struct StopFinder {
    stops: Vec<String>,
    held: String,
}

/// What became of a piece.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passed {
    /// This much may be shown.
    On(String),
    /// This much may be shown, then a stop string came.
    Stopped(String),
}

impl StopFinder {
    /// Looks for these, none of which is empty.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Adds a piece of text.
    pub(crate) fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        if let Some((_, start)) = found.min() {
            self.held.truncate(start);
            return Passed::Stopped(std::mem::take(&mut self.held));
        }
        let keep = self
            .stops
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max();
        let held = self.held.split_off(self.held.len() - keep.unwrap_or(0));
        Passed::On(std::mem::replace(&mut self.held, held))
    }

    /// What was held back, now that nothing follows.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` with which `stop` begins, short of all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(index, _)| index).rev();
    starts
        .into_iter()
        .find(|&len| text.ends_with(&stop[..len]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All text shown for these pieces, and whether a stop string came.
    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut finder = StopFinder::new(stops.iter().map(|&stop| stop.to_owned()).collect());
        let mut shown = String::new();
        for piece in pieces {
            match finder.push(piece) {
                Passed::On(text) => shown += &text,
                Passed::Stopped(text) => return (shown + &text, true),
            }
        }
        (shown + &finder.finish(), false)
    }

    #[test]
    fn a_stop_string_is_found_however_the_text_is_cut() {
        let text = "één: aab aaab, naïf\n\nrest";
        for stop in ["aaab", "aab", "\n\n", "ïf", "é", "rest", "n:"] {
            let expected = (text[..text.find(stop).unwrap()].to_owned(), true);
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(run(&[stop], &[text]), expected, "{stop:?} whole");
            assert_eq!(run(&[stop], &chars), expected, "{stop:?} by characters");
        }
    }

    #[test]
    fn of_overlapping_stop_strings_the_first_to_end_counts() {
        let expected = ("a".to_owned(), true);
        assert_eq!(run(&["abcd", "bc"], &["abcde"]), expected);
        assert_eq!(run(&["abcd", "bc"], &["a", "b", "c", "d", "e"]), expected);
    }

    #[test]
    fn only_what_may_begin_a_stop_string_is_held_back() {
        let mut finder = StopFinder::new(vec!["###".to_owned(), "end".to_owned()]);
        assert_eq!(finder.push("one ##"), Passed::On("one ".to_owned()));
        assert_eq!(finder.push(" two en"), Passed::On("## two ".to_owned()));
        assert_eq!(finder.push("try"), Passed::On("entry".to_owned()));
        assert_eq!(finder.push("#"), Passed::On(String::new()));
        assert_eq!(finder.finish(), "#");
    }

    #[test]
    fn without_stop_strings_everything_passes() {
        assert_eq!(run(&[], &["a", "b"]), ("ab".to_owned(), false));
    }
}
