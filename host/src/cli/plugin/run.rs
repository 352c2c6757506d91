//! `model-host plugin run`

use std::io::Write;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use plugin_sdk::{Event, Extension, Message, Params, Prompt, Request, Role, Usage};
use tokio::runtime::Builder;

use super::model;
use crate::models::{Backend, Loader, Model};
use crate::{config, telemetry};

#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    model: model::Options,
    /// What to ask
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Send the prompt as a user's message rather than as text to continue
    #[arg(long)]
    chat: bool,
    /// The upstream's address
    #[arg(long, value_name = "URL")]
    api_url: Option<String>,
    /// The environment variable that holds the upstream's key
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,
    /// Most new tokens
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_tokens: u32,
    /// Ask so often, one time after the other, and tell how long that takes
    #[arg(long, value_name = "N", default_value_t = NonZeroU32::MIN)]
    times: NonZeroU32,
}

/// Asks the plugin. The answer goes to standard output as it comes, its usage and
/// the plugin's log to standard error.
///
/// # Errors
/// When the plugin cannot be opened, or the request fails.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let (spec, loader) = (options.spec()?, options.model.loader()?);
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let telemetry = telemetry::start()?;
        let asked = options.ask(spec, &loader).await;
        telemetry.end();
        asked
    })
}

impl Options {
    fn spec(&self) -> anyhow::Result<config::Model> {
        let mut spec = self.model.model()?;
        if let Some(url) = &self.api_url {
            spec.api_url = Some(url.clone());
        }
        if let Some(name) = &self.api_key_env {
            #[expect(clippy::disallowed_methods, reason = "the variable is an argument's")]
            let key = std::env::var(name).with_context(|| format!("--api-key-env {name}"))?;
            spec.api_key = Some(key.into());
        }
        Ok(spec)
    }

    async fn ask(&self, spec: config::Model, loader: &Loader) -> anyhow::Result<()> {
        let request = self.request(&spec);
        let backend = Model::new(spec).load(loader).await;
        let backend = backend.map_err(anyhow::Error::msg)?;
        let usage = print(&backend, request.clone()).await?;
        println!();
        eprintln!(
            "{} prompt tokens, {} new tokens ({:?})",
            usage.prompt_tokens, usage.completion_tokens, usage.source
        );
        let mut times = Vec::new();
        for _ in 1..self.times.get() {
            let asked = Instant::now();
            read(&backend, request.clone(), |_| {}).await?;
            times.push(asked.elapsed());
        }
        times.sort_unstable();
        let at = |percent| times.get((times.len().saturating_sub(1)) * percent / 100);
        if let (Some(median), Some(late)) = (at(50), at(99)) {
            let all: Duration = times.iter().sum();
            let (count, rate) = (times.len(), times.len() as f64 / all.as_secs_f64());
            eprintln!("{count} more: p50 {median:?}, p99 {late:?}, {rate:.0} a second");
        }
        Ok(())
    }

    fn request(&self, spec: &config::Model) -> Request {
        let prompt = if self.chat {
            Prompt::Chat(vec![Message::text(Role::User, &*self.prompt)])
        } else {
            Prompt::Text(self.prompt.clone())
        };
        Request {
            request_id: "run".to_owned(),
            model: spec.model_name.clone().unwrap_or_else(|| spec.name.clone()),
            prompt,
            params: Params {
                max_tokens: Some(self.max_tokens),
                ..Params::default()
            },
            tools: Vec::new(),
            deadline_ms: spec.limits.timeout_ms,
            ext: vec![Extension::new("stream", "true")],
        }
    }
}

/// Prints the text of an answer; its final usage.
async fn print(backend: &Backend, request: Request) -> anyhow::Result<Usage> {
    let mut out = std::io::stdout();
    read(backend, request, |text| {
        // nobody reads on: the answer is of no use
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    })
    .await
}

/// Reads an answer to its end, for which it has the request's time; its final usage.
async fn read(
    backend: &Backend,
    request: Request,
    mut take: impl FnMut(&str),
) -> anyhow::Result<Usage> {
    let timeout = Duration::from_millis(request.deadline_ms.into());
    let reading = async {
        let mut completion = backend.generate(request).await?;
        let usage = 'answer: loop {
            for event in completion.next().await? {
                match event {
                    Event::Text(text) => take(&text),
                    Event::Finish(finish) => break 'answer finish.usage,
                    _ => {}
                }
            }
        };
        completion.end().await;
        Ok(usage)
    };
    let read = tokio::time::timeout(timeout, reading).await;
    read.context("the model took too long")?
        .map_err(|error: plugin_sdk::Error| anyhow!("{:?}: {error}", error.kind))
}
