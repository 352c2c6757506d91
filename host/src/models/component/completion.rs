//! One answer of a component in the making.

use std::fmt;
use std::sync::Arc;

use plugin_sdk::{Error, ErrorKind, Event, ToolCall};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::ResourceAny;

use super::instance::{Running, Spare, Template};
use super::network::Upstream;
use super::{Component, failure};

/// One answer in the making. It owns its instance; dropping it stops the instance
/// and the request it may have sent to the upstream.
pub struct Completion {
    /// Gone after an error.
    answering: Option<Answering>,
    upstream: Option<Arc<Upstream>>,
    bytes_left: usize,
    is_over: bool,
}

struct Answering {
    running: Running,
    resource: ResourceAny,
    _place: OwnedSemaphorePermit,
    spare: Arc<Spare>,
    template: Arc<Template>,
}

impl Completion {
    pub(super) fn new(
        component: &Component,
        running: Running,
        resource: ResourceAny,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let template = &component.template;
        Self {
            upstream: template.upstream.clone(),
            bytes_left: template.limits.response_bytes,
            answering: Some(Answering {
                running,
                resource,
                _place: place,
                spare: Arc::clone(&component.spare),
                template: Arc::clone(template),
            }),
            is_over: false,
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
        let answering = self.answering.take().filter(|_| !self.is_over);
        let Some(mut answering) = answering else {
            return Err(Error::new(ErrorKind::Internal, "the answer is over"));
        };
        let running = &mut answering.running;
        let next = running
            .instance
            .next(&mut running.store, answering.resource);
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
            None if events.is_empty() => {
                return Err(failure::plugin_failed("it reported no event"));
            }
            Some(last) if last + 1 < events.len() => {
                return Err(failure::plugin_failed("it reported events after the end"));
            }
            None => {}
            Some(_) => self.is_over = true,
        }
        self.answering = Some(answering);
        Ok(events)
    }

    /// Whether the instance may take another request, once this one has ended.
    pub fn is_kept(&self) -> bool {
        let answering = self.answering.as_ref();
        answering.is_some_and(|answering| answering.running.has_more())
    }

    /// Keeps the instance for its next request, or takes it apart and has another one
    /// made. Nobody should wait for that; dropping the answer takes the instance apart.
    pub async fn end(self) {
        if let Some(answering) = self.answering.filter(|_| self.is_over) {
            let Answering {
                running,
                resource,
                spare,
                template,
                ..
            } = answering;
            spare.give_back(&template, running, resource).await;
        }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("is_over", &(self.is_over || self.answering.is_none()))
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
