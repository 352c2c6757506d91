//! The model that is checked or run: a plugin, and settings of the command line
//! in the place of a configuration file.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use toml::{Table, Value};

use crate::config;
use crate::models::Loader;
use crate::models::component::{Pulled, Runtime};

/// Instances at once: one author's, not a server's.
const INSTANCES: u32 = 64;

#[derive(Debug, Args)]
#[group(skip)]
pub struct Options {
    /// A component's file, or the name of a plugin that is compiled in
    plugin: String,
    /// A field of the model, as in the configuration: model_name=x, limits.memory_mib=256, settings.style=y
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where compiled components are kept [default: the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

impl Options {
    /// The model as a configuration would have it.
    ///
    /// # Errors
    /// When there is no such plugin, or a field is not one of a model.
    pub fn model(&self) -> anyhow::Result<config::Model> {
        let mut table = Table::from_iter([
            ("id".to_owned(), Value::Integer(1)),
            ("name".to_owned(), Value::from("plugin")),
            ("plugin".to_owned(), Value::from(self.plugin.as_str())),
        ]);
        for pair in &self.set {
            let (key, value) = pair
                .split_once('=')
                .with_context(|| format!("--set {pair}: expected KEY=VALUE"))?;
            set(&mut table, key, value).with_context(|| format!("--set {pair}"))?;
        }
        let model: config::Model = Value::Table(table).try_into()?;
        if !model.is_component() && std::path::Path::new(&self.plugin).exists() {
            bail!("{}: a component's file ends in .wasm", self.plugin);
        }
        Ok(model)
    }

    /// What opens it, with the limits and the sandbox of the server.
    ///
    /// # Errors
    /// When there is no folder for compiled components.
    pub fn loader(&self) -> anyhow::Result<Loader> {
        let folder = match &self.cache_dir {
            Some(folder) => folder.clone(),
            None => user_cache().context("no home folder: say --cache-dir")?,
        };
        let shared = config::Components {
            instances: INSTANCES,
            ..config::Components::default()
        };
        let runtime = Runtime::new(&folder.join("code"), &shared)
            .context("cannot start the component runtime")?;
        Ok(Loader {
            runtime: Arc::new(runtime),
            pulled: Pulled::new(folder.join("components")),
        })
    }
}

/// Sets the field of a dotted key. A value that is no TOML is a text.
fn set(table: &mut Table, key: &str, value: &str) -> anyhow::Result<()> {
    match key.split_once('.') {
        Some((first, rest)) => {
            let below = table
                .entry(first)
                .or_insert_with(|| Value::Table(Table::new()));
            let below = below
                .as_table_mut()
                .with_context(|| format!("{first} has no fields"))?;
            set(below, rest, value)
        }
        None => {
            let parsed = format!("value = {value}").parse::<Table>();
            let parsed = parsed.ok().and_then(|mut parsed| parsed.remove("value"));
            table.insert(key.to_owned(), parsed.unwrap_or_else(|| Value::from(value)));
            Ok(())
        }
    }
}

/// The user's folder for what can be made again.
fn user_cache() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cache")))?;
    Some(base.join("model-host/plugins"))
}

#[cfg(test)]
mod tests {
    use toml::Table;

    use super::set;

    #[test]
    fn fields_are_set_by_dotted_keys() {
        let mut table = Table::new();
        for (key, value) in [
            ("model_name", "gpt-x"),
            ("limits.memory_mib", "256"),
            ("settings.words", "[1, 2]"),
            ("settings.url", "http://localhost/?a=b"),
        ] {
            set(&mut table, key, value).unwrap();
        }
        let expected = "model_name = \"gpt-x\"\n[limits]\nmemory_mib = 256\n\
            [settings]\nwords = [1, 2]\nurl = \"http://localhost/?a=b\"\n";
        assert_eq!(table, expected.parse().unwrap());
        set(&mut table, "model_name.x", "1").unwrap_err();
    }
}
