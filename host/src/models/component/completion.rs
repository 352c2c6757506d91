//! One answer of a component in the making.

use std::fmt;
use std::sync::Arc;

use plugin_sdk::{Error, ErrorKind, Event, ToolCall};
use wasmtime::component::ResourceAny;

use super::network::Upstream;
use super::{Running, failure};

/// One answer in the making. It owns its instance; dropping it stops the instance
/// and the request it may have sent to the upstream.
pub struct Completion {
    /// Gone after the end or an error.
    running: Option<(Running, ResourceAny)>,
    upstream: Option<Arc<Upstream>>,
    bytes_left: usize,
}

impl Completion {
    pub(super) fn new(
        running: Running,
        resource: ResourceAny,
        upstream: Option<Arc<Upstream>>,
        bytes: usize,
    ) -> Self {
        Self {
            running: Some((running, resource)),
            upstream,
            bytes_left: bytes,
        }
    }

    /// What happened since the last call, at least one event. [`Event::Finish`] is
    /// the last of all.
    ///
    /// # Errors
    /// The plugin's own, [`ErrorKind::Timeout`] at the request's deadline, or that
    /// the plugin failed: [`ErrorKind::Upstream`] with the code `plugin_failed`.
    /// After an error there is nothing more.
    pub async fn next(&mut self) -> Result<Vec<Event>, Error> {
        // Taken out, so that a call which is dropped half-way ends the instance too.
        let Some((mut running, resource)) = self.running.take() else {
            return Err(Error::new(ErrorKind::Internal, "the answer is over"));
        };
        let next = running.instance.next(&mut running.store, resource);
        let called = running.meter.run(next).await?;
        let events = called.map_err(|error| failure::by_plugin(self.upstream.as_deref(), error))?;

        let size = events.iter().map(size).sum();
        self.bytes_left = self
            .bytes_left
            .checked_sub(size)
            .ok_or_else(|| failure::plugin_failed("its answer is longer than allowed"))?;
        let end = events
            .iter()
            .position(|event| matches!(event, Event::Finish(_)));
        match end {
            None if events.is_empty() => Err(failure::plugin_failed("it reported no event")),
            None => {
                self.running = Some((running, resource));
                Ok(events)
            }
            Some(last) if last + 1 == events.len() => Ok(events),
            Some(_) => Err(failure::plugin_failed("it reported events after the end")),
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("is_over", &self.running.is_none())
            .field("bytes_left", &self.bytes_left)
            .finish_non_exhaustive()
    }
}

/// Bytes that an event adds to an answer.
fn size(event: &Event) -> usize {
    match event {
        Event::Text(text) | Event::Reasoning(text) => text.len(),
        Event::ToolCall(ToolCall {
            id,
            name,
            arguments,
        }) => id.len() + name.len() + arguments.len(),
        Event::Other(extension) => extension.name.len() + extension.value.len(),
        // not nothing, or a plugin could go on for ever with them
        Event::Usage(_) | Event::Finish(_) => size_of::<Event>(),
    }
}
