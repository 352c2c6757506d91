//! Models on the Hugging Face hub, by hf-hub: its cache layout
//! (`blobs`, `snapshots/<commit>`, `refs/<revision>`), its variables (`HF_HOME`,
//! `HF_ENDPOINT`), and downloads in pieces that go on where they were cut off.
//!
//! What is added here: bounds on waiting, and a check of what came. The hub's
//! ETag of a file is its SHA-256 where it is kept as a large file, otherwise the
//! SHA-1 that git gives the blob.

use std::cell::Cell;
use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hf_hub::api::tokio::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::chat::{TEMPLATE, TOKENIZER_CONFIG};
use crate::checkpoint::{CONFIG, GENERATION, INDEX, Refusal, TOKENIZER, WEIGHTS, shards};

use super::display::Display;

/// How long the hub may take to say what it has. Without a network the next
/// source is tried after this.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a download may stand still.
const STALL: Duration = Duration::from_secs(60);
/// How often a download is taken up before the next source is tried.
const TRIES: u32 = 3;
/// Bytes of one request.
const CHUNK: usize = 10_000_000;

/// Between two looks whether somebody else has downloaded a file.
const LOOK: Duration = Duration::from_secs(1);
/// How the names of files end that hf-hub downloads into, and of those that it locks meanwhile.
const PART: &str = "sync.part";
const LOCK: &str = "lock";
/// Where the hub's own tools keep, by commit, the names of files that a model lacks.
const LACKED: &str = ".no_exist";
/// The status of a file that the hub lacks.
const NOT_FOUND: u16 = 404;

/// Where the hub is.
pub(crate) struct Hub {
    /// A mirror, where it is not the hub itself.
    pub(crate) endpoint: Option<String>,
    /// Opens private models.
    pub(crate) token: Option<String>,
    /// Bytes of one request; what a cut connection loses at most.
    pub(crate) chunk: usize,
}

impl Hub {
    /// As the environment says: `HF_ENDPOINT`, `HF_TOKEN`.
    pub(crate) fn from_env() -> Self {
        Self {
            endpoint: variable("HF_ENDPOINT"),
            token: variable("HF_TOKEN"),
            chunk: CHUNK,
        }
    }
}

/// The folder of a model's files, or of one `file` that has it all, fetched if they
/// are not in the cache. What the cache has is checked too, at each load, and
/// fetched anew if it is damaged.
pub(crate) fn fetch(
    hub: &Hub,
    id: &str,
    file: Option<&str>,
    revision: &str,
    cache: Option<&str>,
) -> Result<PathBuf, Refusal> {
    let cache = match cache {
        // the links in the cache are relative between absolute paths
        Some(folder) => Cache::new(std::path::absolute(folder).map_err(refusal)?),
        None => Cache::from_env(),
    };
    let repo = Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned());
    let model = Model {
        hub,
        cache,
        repo,
        is_away: Cell::default(),
    };
    let mut folders = Vec::new();
    if let Some(file) = file {
        folders.push(model.folder_of(file)?);
    } else {
        // what is quick to check comes first
        for file in [CONFIG, TOKENIZER] {
            folders.push(model.folder_of(file)?);
        }
        for file in [GENERATION, TOKENIZER_CONFIG, TEMPLATE] {
            folders.extend(model.folder_if_there(file, &folders[0])?);
        }
        match model.folder_if_there(INDEX, &folders[0])? {
            None => folders.push(model.folder_of(WEIGHTS)?),
            Some(folder) => {
                let index = std::fs::read(folder.join(INDEX));
                let index = index.map_err(|error| Refusal::file(INDEX, error))?;
                for file in shards(&index)? {
                    folders.push(model.folder_of(&file)?);
                }
            }
        }
    }
    folders.dedup();
    match folders.pop() {
        Some(folder) if folders.is_empty() => Ok(folder),
        _ => Err(refusal("the model changed while it was fetched; try again")),
    }
}

/// Why a file could not be fetched.
enum Failure {
    /// The hub lacks it.
    NotThere(Refusal),
    /// Somebody else downloads it, who holds this lock.
    Taken(PathBuf),
    /// Anything else.
    Refused(Refusal),
}

impl Failure {
    fn new(file: &str, error: ApiError) -> Self {
        let error = without_url(error);
        let refusal = Refusal::file(file, reason(&error));
        match error {
            ApiError::LockAcquisition(lock) => Self::Taken(lock),
            ApiError::RequestError(error)
                if error.status().is_some_and(|status| status == NOT_FOUND) =>
            {
                Self::NotThere(refusal)
            }
            _ => Self::Refused(refusal),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotThere(refusal) | Failure::Refused(refusal) => refusal,
            Failure::Taken(lock) => refusal(format!("{} is taken", lock.display())),
        }
    }
}

/// One model, on the hub and in the cache.
struct Model<'a> {
    hub: &'a Hub,
    cache: Cache,
    repo: Repo,
    /// Whether the hub could not be asked for a file that can be done without.
    is_away: Cell<bool>,
}

impl Model<'_> {
    /// The folder that `file` was fetched into; it may be in one of the model's own.
    fn folder_of(&self, file: &str) -> Result<PathBuf, Failure> {
        let path = loop {
            let cached = self.cache.repo(self.repo.clone()).get(file);
            if let Some(path) = cached.filter(|path| is_in_order(file, path)) {
                break path;
            }
            match download(self.hub, &self.cache, &self.repo, file) {
                Err(Failure::Taken(lock)) => wait_for(file, &lock)?,
                done => {
                    let path = done?;
                    verify(file, &path)?;
                    break path;
                }
            }
        };
        let depth = Path::new(file).components().count();
        let folder = path.ancestors().nth(depth).unwrap_or(Path::new(""));
        Ok(folder.to_owned())
    }

    /// The same of a file that the model may lack; the others are in `snapshot`.
    fn folder_if_there(&self, file: &str, snapshot: &Path) -> Result<Option<PathBuf>, Refusal> {
        if !self.is_cached(file) && (self.is_cached(WEIGHTS) || self.is_cached(INDEX)) {
            return Ok(self.folder_if_left_out(file, snapshot));
        }
        match self.folder_of(file) {
            Ok(folder) => Ok(Some(folder)),
            Err(Failure::NotThere(_)) => {
                note(&lacked(file, snapshot));
                Ok(None)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    /// The same where the weights are here: by a tool that shares the cache and had no use for
    /// the file. A hub that cannot be asked for it counts as one that lacks it.
    fn folder_if_left_out(&self, file: &str, snapshot: &Path) -> Option<PathBuf> {
        let lacked = lacked(file, snapshot);
        // the index comes before what it names
        if file == INDEX || self.is_away.get() || lacked.exists() {
            return None;
        }
        // of their commit: by now there may be another one
        let commit = snapshot.file_name()?.to_str()?.to_owned();
        let model = Model {
            hub: self.hub,
            cache: self.cache.clone(),
            repo: Repo::with_revision(self.repo.url(), RepoType::Model, commit),
            is_away: Cell::default(),
        };
        match model.folder_of(file) {
            Ok(folder) => Some(folder),
            Err(Failure::NotThere(_)) => {
                note(&lacked);
                None
            }
            Err(failure) => {
                let refusal = Refusal::from(failure);
                tracing::warn!(%refusal, "the model is loaded without it, if there is one");
                self.is_away.set(true);
                None
            }
        }
    }

    fn is_cached(&self, file: &str) -> bool {
        self.cache.repo(self.repo.clone()).get(file).is_some()
    }
}

/// What says that the model lacks a file, at the commit that the others are of.
fn lacked(file: &str, snapshot: &Path) -> PathBuf {
    let commit = snapshot.file_name().unwrap_or_default();
    let model = snapshot.ancestors().nth(2).unwrap_or(snapshot);
    model.join(LACKED).join(commit).join(file)
}

/// Makes a file that says something by its name. Without it the hub is asked again.
fn note(path: &Path) {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| File::create(path)).ok();
}

fn is_in_order(file: &str, path: &Path) -> bool {
    let verified = verify(file, path);
    if let Err(refusal) = &verified {
        tracing::warn!(%refusal, "a cached file is fetched anew");
    }
    verified.is_ok()
}

/// Downloads one file. A download that is cut off is taken up again, a few
/// times; where nothing came at all, there is no point in that.
fn download(hub: &Hub, cache: &Cache, repo: &Repo, file: &str) -> Result<PathBuf, Failure> {
    let mut tries = TRIES;
    loop {
        // a runtime for each try: its end ends the pieces a failed one left under way
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(refusal)?;
        let display = Display::new();
        let moved = Arc::clone(&display.moved);
        let done = runtime.block_on(attempt(hub, cache, repo, file, display));
        tries -= 1;
        match done {
            Err(Failure::Refused(refusal)) if tries > 0 && moved.load(Ordering::Relaxed) > 0 => {
                tracing::warn!(%refusal, "the download goes on after a failure");
            }
            done => return done,
        }
    }
}

async fn attempt(
    hub: &Hub,
    cache: &Cache,
    repo: &Repo,
    file: &str,
    display: Display,
) -> Result<PathBuf, Failure> {
    let token = hub.token.clone().or_else(|| cache.token());
    let mut builder = ApiBuilder::from_cache(cache.clone())
        .with_token(token)
        .with_chunk_size(Some(hub.chunk));
    if let Some(endpoint) = &hub.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    let api = builder.build().map_err(refusal)?;
    let files = api.repo(repo.clone());
    let failed = |error: ApiError| Failure::new(file, error);
    // a look first, with a short patience: the download itself has none
    let found = tokio::time::timeout(PATIENCE, api.metadata(&files.url(file)))
        .await
        .map_err(|_| refusal(format!("no answer within {} s", PATIENCE.as_secs())))?
        .map_err(failed)?;
    // both become names of files in the cache
    if !is_inside(found.etag()) || !is_inside(found.commit_hash()) {
        let reason = "its ETag or its commit is no file name";
        return Err(Refusal::file(file, reason).into());
    }
    let cached = cache.repo(repo.clone());
    // hf-hub would wait for a while, and then have it once more
    let lock = cached.blob_path(found.etag()).with_extension(LOCK);
    if is_taken(&lock) {
        return Err(Failure::Taken(lock));
    }
    if let Some(path) = cached.get(file) {
        return Ok(path);
    }
    let moved = Arc::clone(&display.moved);
    tokio::select! {
        done = files.download_with_progress(file, display) => done.map_err(failed),
        () = stalled(&moved) => {
            Err(Refusal::file(file, format!("nothing came for {} s", STALL.as_secs())).into())
        }
    }
}

/// Whether somebody else downloads a file, who holds its lock.
fn is_taken(lock: &Path) -> bool {
    let tried = File::open(lock).map(|lock| lock.try_lock());
    matches!(tried, Ok(Err(TryLockError::WouldBlock)))
}

/// Waits until somebody else has downloaded a file or has given up, for as long as
/// pieces of it come.
fn wait_for(file: &str, lock: &Path) -> Result<(), Refusal> {
    tracing::info!(file, "somebody else is downloading it");
    let failed = |error: io::Error| Refusal::file(file, error);
    let part = lock.with_extension(PART);
    let changed = || part.metadata().and_then(|part| part.modified()).ok();
    let lock = File::open(lock).map_err(failed)?;
    let (mut before, mut since) = (changed(), Instant::now());
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let now = changed();
        if now != before {
            (before, since) = (now, Instant::now());
        } else if since.elapsed() > STALL {
            let stall = STALL.as_secs();
            let reason = format!("nothing came for {stall} s of what somebody else downloads");
            return Err(Refusal::file(file, reason));
        }
        thread::sleep(LOOK);
    }
}

/// Whether a path stays in the folder it is joined to.
fn is_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Ends when nothing has come for a while.
async fn stalled(moved: &AtomicU64) {
    let mut before = None;
    loop {
        let now = moved.load(Ordering::Relaxed);
        if before.replace(now) == Some(now) {
            return;
        }
        tokio::time::sleep(STALL).await;
    }
}

/// Checks a file that came against its name in the cache, the hub's ETag. A file
/// that is not what the hub has is removed, so that the next try fetches it anew.
fn verify(file: &str, path: &Path) -> Result<(), Refusal> {
    let failed = |error: io::Error| Refusal::file(file, error);
    let blob = path.canonicalize().map_err(failed)?;
    let etag = blob
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let content = File::open(&blob).map_err(failed)?;
    let sum = match etag.len() {
        64 => sum(Sha256::new(), content).map_err(failed)?,
        40 => {
            let len = content.metadata().map_err(failed)?.len();
            let header = format!("blob {len}\0");
            sum(Sha1::new_with_prefix(header), content).map_err(failed)?
        }
        // a mirror with ETags of its own: there is nothing to check against
        _ => return Ok(()),
    };
    if sum == etag {
        return Ok(());
    }
    std::fs::remove_file(path).map_err(failed)?;
    std::fs::remove_file(&blob).map_err(failed)?;
    Err(Refusal::file(
        file,
        format!("damaged on its way: its checksum is {sum}, not {etag}"),
    ))
}

/// What the hash makes of a file, in hexadecimal.
fn sum(mut hash: impl Digest, mut content: File) -> io::Result<String> {
    let mut piece = vec![0; 1 << 16];
    loop {
        match content.read(&mut piece)? {
            0 => break,
            read => hash.update(&piece[..read]),
        }
    }
    let bytes = hash.finalize();
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The error without the address that was asked: where the hub redirects a download, it holds
/// what opens the file.
fn without_url(error: ApiError) -> ApiError {
    match error {
        ApiError::RequestError(error) => ApiError::RequestError(error.without_url()),
        ApiError::TooManyRetries(error) => ApiError::TooManyRetries(without_url(*error).into()),
        error => error,
    }
}

/// The whole chain of causes: "error sending request" alone says nothing.
fn reason(error: &ApiError) -> String {
    let mut reason = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !reason.contains(&text) {
            reason = format!("{reason}: {text}");
        }
        cause = error.source();
    }
    reason
}

fn refusal(error: impl std::fmt::Display) -> Refusal {
    Refusal::Source(error.to_string())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the variables of the hub's own tools"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
