//! A client of the server: a caller with its key, and the replies it gets.

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PATIENCE;

/// Somebody who calls the server, with or without a key.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    url: String,
    key: Option<(&'static str, String)>,
}

/// An answer that comes as Server-Sent Events.
#[derive(Debug)]
pub struct Events {
    pub headers: HeaderMap,
    response: reqwest::Response,
    unread: String,
}

/// What the server answered.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The body as JSON; a text when it is none.
    pub body: Value,
}

impl Client {
    /// A client of the server at `url`; `key` is a header and its value.
    pub fn new(url: &str, key: Option<(&'static str, String)>) -> Self {
        // harmless when another test was first
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none());
        Self {
            http: http.build().expect("an HTTP client"),
            url: url.to_owned(),
            key,
        }
    }

    /// The key's text.
    pub fn key(&self) -> &str {
        self.key.as_ref().map_or("", |(_, key)| key)
    }

    /// The same caller of a server at another address.
    pub fn at(&self, url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ..self.clone()
        }
    }

    /// The same caller, who sends the key in another header.
    pub fn with_header(&self, name: &'static str, value: String) -> Self {
        Self {
            key: Some((name, value)),
            ..self.clone()
        }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, None).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(Method::POST, path, Some(body)).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PATCH, path, Some(body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Reply {
        self.send(Method::PUT, path, Some(body)).await
    }

    /// Posts a request whose answer is a stream.
    pub async fn stream(&self, path: &str, body: Value) -> Events {
        let response = self.request(Method::POST, path).json(&body);
        let response = response.send().await.expect("an answer");
        assert_eq!(response.status(), 200, "{:?}", response.text().await);
        Events::of(response)
    }

    /// Posts a request on a connection of its own, whose answer is read by hand.
    pub async fn by_hand(&self, path: &str, body: &Value) -> TcpStream {
        let address = self.url.trim_start_matches("http://");
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        let (body, (name, key)) = (body.to_string(), self.key.as_ref().expect("a key"));
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\n{name}: {key}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(request.as_bytes()).await.expect("sent");
        socket
    }

    /// A request to go on with by hand.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.key {
            Some((name, value)) => request.header(*name, value),
            None => request,
        }
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Reply {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        Reply::of(request.send().await.expect("an answer")).await
    }
}

/// Leaves a connection, and returns what still came until the server had seen that.
pub async fn leave(mut socket: TcpStream) -> String {
    socket.shutdown().await.expect("left");
    let mut came = Vec::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut came));
    read.await.expect("the server sees it").expect("all of it");
    String::from_utf8(came).expect("text")
}

impl Events {
    /// Those that a response is made of.
    pub fn of(response: reqwest::Response) -> Self {
        Self {
            headers: response.headers().clone(),
            response,
            unread: String::new(),
        }
    }

    /// The request's id.
    pub fn id(&self) -> String {
        let id = self.headers["x-request-id"].to_str();
        id.expect("text").to_owned()
    }

    /// The next event: JSON, or a text when it is none; nothing at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.unread.split_once("\n\n") {
                let data = event.strip_prefix("data: ").map(str::to_owned);
                self.unread = rest.to_owned();
                // a comment keeps the connection alive and says nothing
                let Some(data) = data else { continue };
                return Some(serde_json::from_str(&data).unwrap_or(Value::String(data)));
            }
            let piece = self.response.chunk().await.expect("an unbroken answer")?;
            self.unread += std::str::from_utf8(&piece).expect("whole characters");
        }
    }

    /// All events that are left.
    pub async fn rest(mut self) -> Vec<Value> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

impl Reply {
    /// Reads the whole answer.
    pub async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.expect("a body");
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Self {
            status,
            headers,
            body,
        }
    }

    /// The body, if the status is this one.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        self.body
    }

    /// The error's code, if the status is this one and the error is as promised.
    #[track_caller]
    pub fn expect_error(self, status: u16) -> String {
        let id = self.header("x-request-id").to_owned();
        let body = self.expect(status);
        let error = &body["error"];
        assert_eq!(error["request_id"], id.as_str(), "{body}");
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{body}"
        );
        error["code"]
            .as_str()
            .unwrap_or_else(|| panic!("no code in {body}"))
            .to_owned()
    }

    /// A header's text, empty when there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }
}
