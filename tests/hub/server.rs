//! A hub of one's own: a small HTTP server that speaks the hub's protocol, with faults that can be switched on.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sha1::{Digest, Sha1};
use sha2::Sha256;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with one answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The body ends after so many bytes, though more were promised.
    Cut(usize),
    /// So many bytes are sent, and then nothing more.
    Stall(usize),
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

#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Faults of the answers for paths that end so, one an answer.
    pub faults: HashMap<String, VecDeque<Fault>>,
    pub seen: Vec<Seen>,
    /// Names of siblings that are listed beside the files.
    pub listed: Vec<String>,
    /// Token without which nothing is given.
    pub private: Option<String>,
    /// Whether small files are on the other host too.
    pub revision: String,
}

/// The hub, and the host that large files lie on.
pub struct Hub {
    pub state: Arc<Mutex<State>>,
    pub endpoint: String,
}

impl Hub {
    /// A hub with the model `org/tiny` of these files.
    pub fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let state = Arc::new(Mutex::new(State { files, revision: "main".into(), ..State::default() }));
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
        self.state.lock().unwrap().faults.insert(path.into(), faults.iter().cloned().collect());
    }

    /// What was asked for since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

fn sha256(bytes: &[u8]) -> String {
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
    if path.ends_with(".safetensors") { sha256(bytes) } else { blob(bytes) }
}

fn listing(state: &State) -> String {
    let mut siblings: Vec<_> = state
        .files
        .iter()
        .map(|(path, bytes)| {
            let mut one = json!({"rfilename": path, "size": bytes.len(), "blobId": blob(bytes)});
            if path.ends_with(".safetensors") {
                one["lfs"] = json!({"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134});
            }
            one
        })
        .collect();
    siblings.extend(state.listed.iter().map(|name| json!({"rfilename": name, "size": 3, "blobId": blob(b"abc")})));
    json!({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).to_string()
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
    let large = plain.ends_with(".safetensors");
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
    let revision = format!("/api/models/org/tiny/revision/{}", state.revision);
    if plain == revision || plain == format!("/api/models/org/tiny/revision/{COMMIT}") {
        let text = listing(&state);
        return send(&mut stream, 200, "", text.len(), text.as_bytes());
    }
    let file = plain.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/"));
    let Some((name, bytes)) = file.and_then(|f| Some((f, state.files.get(f)?.clone()))) else {
        let code = if plain.contains("/org/tiny/") { "RevisionNotFound" } else { "RepoNotFound" };
        return send(&mut stream, 404, &format!("X-Error-Code: {code}\r\n"), 0, b"");
    };
    drop(state);
    let about = format!("X-Repo-Commit: {COMMIT}\r\nX-Linked-Etag: \"{}\"\r\n", etag(name, &bytes));
    if redirects {
        let to = if matches!(fault, Some(Fault::Circle)) { plain.clone() } else { format!("{elsewhere}{plain}") };
        return send(&mut stream, 302, &format!("{about}Location: {to}\r\n"), 0, b"");
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
