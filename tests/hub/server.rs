//! A hub of one's own: a small HTTP server that speaks the hub's protocol, with faults that can be switched on.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with one answer.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The body ends after so many bytes, though more were promised.
    Cut(usize),
    /// So many bytes are sent, and then nothing more.
    Stall(usize),
    /// All is sent, but slowly: a kilobyte, and a pause.
    Trickle,
    /// One byte is another.
    Corrupt,
    /// The whole is sent, whatever was asked for.
    IgnoreRange,
    /// Ten bytes too many.
    TooLong,
    /// Another status, with a header.
    Status(u16, &'static str, &'static str),
    /// Every redirect leads back.
    Circle,
}

/// A request as it was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    pub host: &'static str,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

/// A model's files by their paths.
pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Default)]
pub struct State {
    pub models: BTreeMap<String, Files>,
    /// Old names of models, each with the new one.
    pub renamed: BTreeMap<String, String>,
    /// Faults of the answers for paths that end so, one an answer.
    pub faults: HashMap<String, VecDeque<Fault>>,
    pub seen: Vec<Seen>,
    /// Siblings that are listed beside the files, though nothing is there.
    pub listed: Vec<Value>,
    /// Token without which nothing is given.
    pub private: Option<String>,
    /// The branch or tag that there is.
    pub revision: String,
}

/// The hub, and the host that large files lie on.
pub struct Hub {
    pub state: Arc<Mutex<State>>,
    pub endpoint: String,
}

impl Hub {
    /// A hub with the model `org/tiny` of these files.
    pub fn with(files: Files) -> Self {
        let models = [("org/tiny".into(), files)].into();
        let state = Arc::new(Mutex::new(State { models, revision: "main".into(), ..State::default() }));
        let (hub, store) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let elsewhere = format!("http://{}", store.local_addr().unwrap());
        for (host, listener) in [("hub", hub), ("store", store)] {
            let (state, elsewhere) = (Arc::clone(&state), elsewhere.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, elsewhere) = (Arc::clone(&state), elsewhere.clone());
                    std::thread::spawn(move || answer(host, stream, &state, &elsewhere));
                }
            });
        }
        Self { state, endpoint }
    }

    pub fn fault(&self, path: &str, faults: &[Fault]) {
        self.state.lock().unwrap().faults.insert(path.into(), faults.iter().copied().collect());
    }

    /// What was asked for since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

/// A file of this size that is listed, though it is not there.
pub fn listed(path: &str, size: u64) -> Value {
    json!({"rfilename": path, "size": size, "blobId": blob(b"abc")})
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Git's hash of a file.
pub fn blob(bytes: &[u8]) -> String {
    let mut sha = Sha1::new();
    sha.update(format!("blob {}\0", bytes.len()));
    sha.update(bytes);
    sha.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

pub fn etag(path: &str, bytes: &[u8]) -> String {
    if is_large(path) { sha256(bytes) } else { blob(bytes) }
}

/// Whether a file lies on the other host, under its SHA-256.
fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors") || path.ends_with(".gguf")
}

fn listing(model: &str, state: &State) -> String {
    let mut siblings: Vec<_> = state.models[model]
        .iter()
        .map(|(path, bytes)| {
            let mut one = json!({"rfilename": path, "size": bytes.len(), "blobId": blob(bytes)});
            if is_large(path) {
                one["lfs"] = json!({"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134});
            }
            one
        })
        .collect();
    siblings.extend(state.listed.iter().cloned());
    json!({"id": model, "sha": COMMIT, "siblings": siblings}).to_string()
}

/// The same as huggingface_hub asks for it.
fn tree(files: &Files) -> String {
    let one = |(path, bytes): (&String, &Vec<u8>)| {
        let mut one = json!({"type": "file", "path": path, "size": bytes.len(), "oid": blob(bytes)});
        if is_large(path) {
            one["lfs"] = json!({"oid": sha256(bytes), "size": bytes.len(), "pointerSize": 134});
        }
        one
    };
    Value::Array(files.iter().map(one).collect()).to_string()
}

fn send(stream: &mut TcpStream, status: u16, headers: &str, length: usize, body: &[u8]) {
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).and_then(|()| stream.flush());
}

fn answer(host: &'static str, mut stream: TcpStream, state: &Mutex<State>, elsewhere: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    let _ = reader.read_line(&mut line);
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let asks_only = line.starts_with("HEAD ");
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(n) if n > 2 => {}
            _ => break,
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.insert(name.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    if path.is_empty() {
        return;
    }
    let (range, token) = (headers.get("range").cloned(), headers.get("authorization").cloned());
    let mut state = state.lock().unwrap();
    state.seen.push(Seen { host, path: path.clone(), range: range.clone(), token: token.clone() });
    let plain = path.split('?').next().unwrap_or_default().to_owned();
    let large = is_large(&plain);
    // Large files are sent by the other host; the hub's part of it is the redirect.
    let redirects = host == "hub" && large;
    let fault = match state.faults.iter().find(|(end, _)| plain.ends_with(end.as_str())).map(|(end, _)| end.clone()) {
        Some(end) if !redirects || matches!(state.faults[&end].front(), Some(Fault::Circle)) => {
            state.faults.get_mut(&end).and_then(VecDeque::pop_front)
        }
        _ => None,
    };
    if let Some(Fault::Status(status, name, value)) = fault {
        return send(&mut stream, status, &format!("{name}: {value}\r\n"), 0, b"");
    }
    if host == "hub" && state.private.as_ref().is_some_and(|t| token != Some(format!("Bearer {t}"))) {
        return send(&mut stream, 401, "X-Error-Code: RepoNotFound\r\n", 0, b"");
    }
    if let Some((old, new)) = state.renamed.iter().find(|(old, _)| path.contains(&format!("/{old}/"))) {
        let to = path.replacen(&format!("/{old}/"), &format!("/{new}/"), 1);
        return send(&mut stream, 307, &format!("Location: {to}\r\n"), 0, b"");
    }
    let model = state.models.keys().find(|name| plain.contains(&format!("/{name}/"))).cloned();
    let Some(model) = model else { return send(&mut stream, 404, "X-Error-Code: RepoNotFound\r\n", 0, b"") };
    let of = |revision: &str| format!("/api/models/{model}/revision/{revision}");
    if plain == of(&state.revision) || plain == of(COMMIT) {
        let text = listing(&model, &state);
        return send(&mut stream, 200, "", text.len(), text.as_bytes());
    }
    if plain == format!("/api/models/{model}/tree/{COMMIT}") {
        let text = tree(&state.models[&model]);
        return send(&mut stream, 200, "", text.len(), text.as_bytes());
    }
    let file = plain.strip_prefix(&format!("/{model}/resolve/{COMMIT}/"));
    let Some((name, bytes)) = file.and_then(|f| Some((f, state.models[&model].get(f)?.clone()))) else {
        return send(&mut stream, 404, "X-Error-Code: RevisionNotFound\r\n", 0, b"");
    };
    drop(state);
    let (etag, size) = (etag(name, &bytes), bytes.len());
    let about = format!(
        "X-Repo-Commit: {COMMIT}\r\nETag: \"{etag}\"\r\nX-Linked-Etag: \"{etag}\"\r\nX-Linked-Size: {size}\r\n"
    );
    if redirects {
        let to = if matches!(fault, Some(Fault::Circle)) { plain.clone() } else { format!("{elsewhere}{plain}") };
        return send(&mut stream, 302, &format!("{about}Location: {to}\r\n"), 0, b"");
    }
    if asks_only {
        return send(&mut stream, 200, &about, size, b"");
    }
    let mut from = range.and_then(|r| r.trim_start_matches("bytes=").trim_end_matches('-').parse().ok()).unwrap_or(0);
    if matches!(fault, Some(Fault::IgnoreRange)) {
        from = 0;
    }
    if from >= bytes.len() && from > 0 {
        return send(&mut stream, 416, &format!("Content-Range: bytes */{}\r\n", bytes.len()), 0, b"");
    }
    let mut body = bytes[from..].to_vec();
    let mut about = about;
    let status = if from > 0 { 206 } else { 200 };
    if from > 0 {
        about += &format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
    }
    match fault {
        Some(Fault::Cut(n)) => send(&mut stream, status, &about, body.len(), &body[..n.min(body.len())]),
        Some(Fault::Stall(n)) => {
            send(&mut stream, status, &about, body.len(), &body[..n.min(body.len())]);
            std::thread::sleep(Duration::from_secs(600));
        }
        Some(Fault::Trickle) => {
            send(&mut stream, status, &about, body.len(), b"");
            for piece in body.chunks(1024) {
                if stream.write_all(piece).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Some(Fault::Corrupt) => {
            body[0] ^= 1;
            send(&mut stream, status, &about, body.len(), &body);
        }
        Some(Fault::TooLong) => {
            body.extend([0; 10]);
            send(&mut stream, status, &about, body.len(), &body);
        }
        _ => send(&mut stream, status, &about, body.len(), &body),
    }
}
