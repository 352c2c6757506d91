//! `interface upstream`: the way out of `network`, in the types of the contract.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use wasmtime::component::Resource;
use wasmtime_wasi_http::{Error, WasiHttpHooks};

use super::bindings::model::plugin::upstream::{Failure, Host, HostBody, Request, Response};
use crate::models::component::network::{Arriving, Exchange};
use crate::models::component::state::State;

impl Host for State {
    async fn send(&mut self, request: Request, body: Vec<u8>) -> Result<Response, Failure> {
        let exchange = Exchange {
            method: Method::from_bytes(request.method.as_bytes())
                .map_err(|_| Failure::Invalid("the method cannot be sent".to_owned()))?,
            url: request.url,
            headers: self.headers(&request.headers)?,
            body: Bytes::from(body),
        };
        let allowed = Duration::from_millis(request.timeout_ms.into());
        let (response, mut arriving) = self.network.exchange(exchange, allowed).await?;
        let body = arriving.what_is_there()?;
        let rest = match arriving.is_over() {
            true => None,
            false => Some(
                self.table
                    .push(arriving)
                    .map_err(|error| Failure::Broken(error.to_string()))?,
            ),
        };
        let headers = response.headers().iter();
        Ok(Response {
            status: response.status().as_u16(),
            headers: headers
                .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
                .collect(),
            body,
            rest,
        })
    }
}

impl HostBody for State {
    async fn read(
        &mut self,
        body: Resource<Arriving>,
    ) -> wasmtime::Result<Result<Vec<u8>, Failure>> {
        let arriving = self.table.get_mut(&body)?;
        Ok(arriving.piece().await.map_err(Failure::from))
    }

    async fn end(&mut self, body: Resource<Arriving>) -> wasmtime::Result<()> {
        self.table.delete(body)?.drain().await;
        Ok(())
    }

    fn drop(&mut self, body: Resource<Arriving>) -> wasmtime::Result<()> {
        self.table.delete(body)?;
        Ok(())
    }
}

impl State {
    /// # Errors
    /// Names the header that cannot be sent.
    fn headers(&mut self, named: &[(String, String)]) -> Result<HeaderMap, Failure> {
        let is_forbidden = self.network.forbidden_header_filter();
        let too_many = |_| Failure::Invalid("there are too many headers to send".to_owned());
        let mut headers = HeaderMap::try_with_capacity(named.len()).map_err(too_many)?;
        for (name, value) in named {
            let unsendable = || Failure::Invalid(format!("header {name} cannot be sent"));
            let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| unsendable())?;
            if is_forbidden(&key) {
                let why = format!("header {name} is set by the host alone");
                return Err(Failure::Invalid(why));
            }
            let value = HeaderValue::from_str(value).map_err(|_| unsendable())?;
            headers.try_append(key, value).map_err(too_many)?;
        }
        Ok(headers)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::HttpRequestDenied
            | Error::DestinationIpProhibited
            | Error::ConnectionLimitReached => Self::Denied,
            Error::ConnectionReadTimeout | Error::HttpResponseTimeout => Self::Timeout,
            Error::HttpResponseBodySize(_) => Self::TooLarge,
            Error::HttpRequestUriInvalid => Self::Invalid("api_url cannot be sent".to_owned()),
            Error::ConnectionRefused | Error::ConnectionTimeout => {
                Self::Unreachable(error.to_string())
            }
            error => Self::Broken(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use wasmtime_wasi_http::Error;

    use super::{Failure, State};
    use crate::config::ModelLimits;
    use crate::models::component::guest_log::GuestLog;
    use crate::models::component::network::Network;

    #[test]
    fn a_request_without_a_connection_may_be_sent_again() {
        for error in [Error::ConnectionTimeout, Error::ConnectionRefused] {
            let failure = Failure::from(error);
            assert!(matches!(failure, Failure::Unreachable(_)), "{failure:?}");
        }
        let late = Failure::from(Error::ConnectionReadTimeout);
        assert!(matches!(late, Failure::Timeout), "{late:?}");
    }

    #[test]
    fn more_headers_than_can_be_sent_are_refused() {
        let network = Network {
            gate: None,
            requests_left: 1,
            deadline: Instant::now(),
        };
        let log = GuestLog::new("model".into(), None, 1);
        let mut state = State::new(Arc::default(), log, network, &ModelLimits::default());
        for count in [30_000, 100_000] {
            let names = (0..count).map(|number| (format!("x-{number}"), String::new()));
            let named: Vec<_> = names.collect();
            let headers = state.headers(&named);
            assert!(matches!(headers, Err(Failure::Invalid(_))), "{headers:?}");
        }
        assert_eq!(state.headers(&[("a".into(), "b".into())]).unwrap().len(), 1);
    }
}
