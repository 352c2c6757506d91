//! A generation becomes a response: one JSON body, or Server-Sent Events as the
//! model produces.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::http::HeaderValue;
use axum::http::header::{self, HeaderName};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tracing::Span;

use super::error::ApiError;
use super::limits;
use crate::generate::{Answer, Ask, Content, Generation, Generator, Piece};

/// The last event of a stream that did not fail, as in OpenAI's API.
const DONE: &str = "[DONE]";
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Keeps nginx from collecting the events.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Marks an answer that was given before, as at Stripe.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// JSON of a body or an event, written from a type at once: of values, each would be a
/// tree to build first.
#[derive(Debug)]
pub struct Written(String);

impl Written {
    /// The JSON of a body.
    pub fn of(body: &impl Serialize) -> Self {
        // texts and numbers in objects with names: none of it fails
        Self(serde_json::to_string(body).unwrap_or_default())
    }
}

/// How an endpoint words what a generation gives.
pub trait Shape: Send + 'static {
    /// The body of a whole answer.
    fn whole(&self, content: Content, answer: &Answer) -> Written;

    /// The events that a piece becomes.
    fn piece(&mut self, piece: Piece) -> Vec<Written>;

    /// The events at the end of an answer.
    fn end(&mut self, answer: &Answer) -> Vec<Written>;

    /// The error with the names of the endpoint's own fields.
    fn error(&self, error: ApiError) -> ApiError {
        error
    }
}

/// Answers `ask` in this shape.
///
/// # Errors
/// Whatever fails before the first byte of the answer. What fails later is the
/// last event of the stream.
pub async fn respond(
    generator: &Arc<Generator>,
    ask: Ask,
    shape: impl Shape,
) -> Result<Response, ApiError> {
    let (id, is_streamed) = (ask.request_id.clone(), ask.is_streamed);
    let mut generation = generator
        .start(ask)
        .await
        .map_err(|error| shape.error(error.into()))?;
    let (standings, is_repeated) = (generation.take_standings(), generation.is_repeated());
    let failed = |shape: &dyn Shape, error| {
        shape.error(ApiError::from(error).with_standings(standings.clone()))
    };
    let mut response = if is_streamed {
        let mut stream = Stream {
            generation: Some(generation),
            shape,
            ready: VecDeque::new(),
            request_id: id,
            span: Span::current(),
        };
        // the status can only be chosen once the model has begun
        if let Err(error) = stream.advance().await {
            return Err(failed(&stream.shape, error));
        }
        stream.into_response()
    } else {
        let (content, answer) = generation
            .whole()
            .await
            .map_err(|error| failed(&shape, error))?;
        let Written(json) = shape.whole(content, &answer);
        ([(header::CONTENT_TYPE, JSON)], json).into_response()
    };
    let headers = response.headers_mut();
    limits::write(headers, &standings);
    if is_repeated {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// A response in the making. Dropping it, as when the client leaves, ends the
/// generation.
struct Stream<S> {
    generation: Option<Generation>,
    shape: S,
    ready: VecDeque<Event>,
    request_id: String,
    span: Span,
}

impl<S: Shape> Stream<S> {
    /// Waits for the next piece, or the end, and makes its events ready.
    async fn advance(&mut self) -> Result<(), crate::generate::Error> {
        let Some(generation) = &mut self.generation else {
            return Ok(());
        };
        if let Some(piece) = generation.next().await {
            let events = self.shape.piece(piece);
            self.ready.extend(events.into_iter().map(event));
        } else if let Some(generation) = self.generation.take() {
            let answer = generation.answer().await?;
            let events = self.shape.end(&answer);
            self.ready.extend(events.into_iter().map(event));
            self.ready.push_back(Event::default().data(DONE));
        }
        Ok(())
    }

    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some((Ok(event), self));
            }
            self.generation.as_ref()?;
            if let Err(error) = self.advance().await {
                let error = self.shape.error(error.into());
                let body = self.span.in_scope(|| error.body(&self.request_id));
                self.ready.push_back(event(Written::of(&body)));
            }
        }
    }

    fn into_response(self) -> Response {
        let events = stream::unfold(self, Self::next);
        let mut response = Sse::new(events)
            .keep_alive(KeepAlive::default())
            .into_response();
        let headers = response.headers_mut();
        headers.insert(NO_BUFFERING, HeaderValue::from_static("no"));
        response
    }
}

fn event(Written(json): Written) -> Event {
    Event::default().data(json)
}
