//! Requests to the hub: redirects that keep the token at home, waiting where the hub asks for it, and errors in words.

use std::time::Duration;

use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

use crate::checkpoint::hub::repo::Repo;
use crate::checkpoint::hub::settings::Settings;

/// Requests that are sent without getting any further.
pub(super) const TRIES: u32 = 5;

/// First time between two tries; it doubles.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(500);

/// Longest time that the hub may ask to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Time to be connected in.
const CONNECT: Duration = Duration::from_secs(10);

/// Redirects that are followed.
const HOPS: usize = 5;

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The hub answered, and the answer is no: a reason and a remedy.
    No(String, Option<String>),
    /// The hub did not answer, or not to the end; trying again may help.
    Broken(String),
    /// The hub asks to wait so long.
    Wait(String, Duration),
}

/// A client of one hub, for one model.
pub(super) struct Client {
    agent: Agent,
    settings: Settings,
    /// Address of the model's page, for people.
    page: String,
}

impl Client {
    pub(super) fn new(settings: &Settings, repo: &Repo) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(settings.silence))
            .timeout_per_read(Some(settings.silence))
            .user_agent(concat!("headroom/", env!("CARGO_PKG_VERSION")))
            .build();
        let page = format!("{}/{}", settings.endpoint, repo.id);
        Self { agent: config.into(), settings: settings.clone(), page }
    }

    /// One request for a path of the hub, from this byte on.
    pub(super) fn get(&self, path: &str, from: u64) -> Result<Response<Body>, Refusal> {
        let endpoint = &self.settings.endpoint;
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            let remedy = format!("write it as an address, such as `https://{}`", shown(endpoint));
            return Err(Refusal::No(
                format!("HF_ENDPOINT is `{}`, which is no address", shown(endpoint)),
                Some(remedy),
            ));
        }
        let mut url = format!("{endpoint}{path}");
        for _ in 0..HOPS {
            let mut request = self.agent.get(&url).header("accept-encoding", "identity");
            // The token is for the hub, and for no host that it sends us to.
            if let Some(token) = self.settings.token.as_ref().filter(|_| self.at_home(&url)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|e| Refusal::Broken(e.to_string()))?;
            if !response.status().is_redirection() {
                return self.judged(response);
            }
            let to = response.headers().get("location").and_then(|l| l.to_str().ok()).unwrap_or_default();
            url = match to.starts_with('/') && !to.starts_with("//") {
                true => format!("{}{to}", origin(&url)),
                false => to.to_owned(),
            };
            if !(url.starts_with("https://") || url.starts_with("http://") && endpoint.starts_with("http://")) {
                return Err(Refusal::No(
                    format!("the hub redirects to `{}`, which is not a safe address", shown(&url)),
                    None,
                ));
            }
        }
        Err(Refusal::No("the hub redirects in a circle".into(), None))
    }

    /// Whether an address is the hub's own.
    fn at_home(&self, url: &str) -> bool {
        origin(url) == origin(&self.settings.endpoint)
    }

    /// An answer that is one, or what the hub says against it.
    fn judged(&self, response: Response<Body>) -> Result<Response<Body>, Refusal> {
        let (status, headers) = (response.status(), response.headers());
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let code = text("x-error-code");
        let login = "set HF_TOKEN, or run `hf auth login`";
        let no = |reason: &str, remedy: &str| Refusal::No(reason.into(), Some(remedy.into()));
        match status.as_u16() {
            200 | 206 | 416 => Ok(response),
            _ if code == "GatedRepo" => {
                let who = match self.settings.token {
                    Some(_) => "with the account that the token belongs to".into(),
                    None => format!("and {login}"),
                };
                Err(no(
                    "it is gated: its owner wants terms to be accepted first",
                    &format!("accept them at {} {who}", self.page),
                ))
            }
            _ if code == "EntryNotFound" => Err(Refusal::No("it has no such file".into(), None)),
            _ if code == "RevisionNotFound" => Err(Refusal::No("it has no such revision".into(), None)),
            401 | 404 if self.settings.token.is_none() => Err(no(
                "it does not exist, or it is private",
                &format!("check the spelling; if it is private, {login}"),
            )),
            404 => Err(no("it does not exist, or your token may not see it", "check the spelling")),
            401 => Err(no("the hub does not accept the token", login)),
            403 => Err(no("the token may not read it", "give the token read access to it, or use another")),
            429 => Err(Refusal::Wait("the hub has had too many requests".into(), asked_wait(text("retry-after")))),
            408 | 500..=599 => Err(Refusal::Wait(format!("the hub answers {status}"), asked_wait(text("retry-after")))),
            _ => Err(Refusal::No(format!("the hub answers {status}"), None)),
        }
    }
}

/// Does `work` again while trying may help, at most so often; `pause` waits, and says whether to go on.
pub(super) fn tried<T>(
    most: u32,
    mut work: impl FnMut() -> Result<T, Refusal>,
    mut pause: impl FnMut(Duration) -> bool,
) -> Result<T, Refusal> {
    let mut wait = FIRST_WAIT;
    for left in (0..most).rev() {
        let refusal = match work() {
            Ok(done) => return Ok(done),
            Err(refusal) => refusal,
        };
        let asked = match &refusal {
            Refusal::No(..) => return Err(refusal),
            Refusal::Broken(_) => Duration::ZERO,
            Refusal::Wait(_, asked) => *asked,
        };
        if left == 0 || !pause(asked.max(wait)) {
            return Err(refusal);
        }
        wait *= 2;
    }
    Err(Refusal::Broken("it was not tried".into()))
}

/// `Retry-After` in seconds; a date or nothing is no wish.
fn asked_wait(text: &str) -> Duration {
    text.trim().parse().map_or(Duration::ZERO, Duration::from_secs).min(LONGEST_WAIT)
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> String {
    let uri: Uri = url.parse().unwrap_or_default();
    let (scheme, authority) = (uri.scheme_str().unwrap_or_default(), uri.authority().map_or("", |a| a.as_str()));
    format!("{scheme}://{authority}")
}

fn shown(url: &str) -> String {
    url.chars().take(100).collect()
}

/// Whether only a part was sent, from this byte on.
pub(super) fn is_part(response: &Response<Body>, from: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|v| v.to_str().ok()).unwrap_or_default();
    response.status() == StatusCode::PARTIAL_CONTENT && range.starts_with(&format!("bytes {from}-"))
}
