//! stub, replaced by its writer
use plugin_sdk::*;
#[derive(Debug)]
pub struct Component;
#[derive(Debug)]
pub struct Completion;
#[derive(Debug)]
pub struct Runtime;
#[derive(Default)]
pub struct Limits {
    pub memory_mib: usize,
    pub cpu_ms: u32,
    pub z: u32,
}
pub struct Upstream {
    pub url: reqwest::Url,
    pub secret: Option<secrecy::SecretString>,
}
pub struct Spec {
    pub model: String,
    pub path: std::path::PathBuf,
    pub settings: Settings,
    pub upstream: Option<Upstream>,
    pub limits: Limits,
}
impl Runtime {
    pub fn new(_: &std::path::Path) -> Result<Self, std::io::Error> {
        Ok(Self)
    }
}
impl Component {
    pub async fn open(_: &std::sync::Arc<Runtime>, _: Spec) -> Result<Self, Error> {
        Ok(Self)
    }
    pub fn info(&self) -> &PluginInfo {
        std::unimplemented!()
    }
    pub fn digest(&self) -> &str {
        std::unimplemented!()
    }
    pub async fn estimate(&self, _: &Request) -> Result<TokenEstimate, Error> {
        std::unimplemented!()
    }
    pub async fn generate(&self, _: Request) -> Result<Completion, Error> {
        std::unimplemented!()
    }
}
impl Completion {
    pub async fn next(&mut self) -> Result<Vec<Event>, Error> {
        std::unimplemented!()
    }
}
