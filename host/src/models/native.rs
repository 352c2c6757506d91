//! stub, replaced by its writer
use plugin_sdk::*;
#[derive(Debug)]
pub struct Native;
#[derive(Debug)]
pub struct Completion;
pub struct Options {
    pub parallel: usize,
    pub queue: usize,
}
pub fn is_known(plugin: &str) -> bool {
    plugin == "gpt2"
}
impl Native {
    pub async fn open(_: &str, _: &str, _: Settings, _: Options) -> Result<Self, Error> {
        Ok(Self)
    }
    pub fn info(&self) -> &PluginInfo {
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
