//! No network: outside a component, such as in a plugin's own unit tests.

use std::time::Duration;

use super::{Failure, Incoming, Post, Url};

/// No answer ever comes.
pub(super) enum Body {}

impl Body {
    pub(super) fn piece(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match *self {}
    }

    pub(super) fn drain(&mut self, _: Duration) {
        match *self {}
    }
}

pub(super) fn open(_: &Post<'_>, _: &Url<'_>) -> Result<Incoming, Failure> {
    Err(Failure::Denied)
}
