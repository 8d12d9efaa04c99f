//! Calls to somebody outside, from the users' own network.

use std::time::Duration;

use aloft_plane::{Call, PlaneError};

/// Longest wait for an answer. What takes longer should answer at once and work on.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Posts the call.
pub(super) async fn post(call: &Call) -> Result<(), PlaneError> {
    let call = call.clone();
    let answer = tokio::task::spawn_blocking(move || send(&call)).await;
    answer.unwrap_or_else(|e| Err(PlaneError::Unavailable(format!("the call did not finish: {e}"))))
}

fn send(call: &Call) -> Result<(), PlaneError> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .http_status_as_error(false)
        .user_agent(concat!("aloft/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let request = agent.post(&call.url).header("content-type", "application/json").header("idempotency-key", &call.id);
    match request.send(&call.body[..]) {
        Ok(answer) => match answer.status().as_u16() {
            200..=299 => Ok(()),
            status @ (408 | 429 | 500..) => Err(PlaneError::Unavailable(format!("it answered with status {status}"))),
            status => Err(PlaneError::Denied(format!("it answered with status {status}"))),
        },
        Err(ureq::Error::BadUri(why)) => Err(PlaneError::Denied(format!("its URL is not one: {why}"))),
        Err(error) => Err(PlaneError::Unavailable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// Answers one request with `status`, and gives back what it was asked.
    fn serve(status: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"{\"a\":1}") {
                let mut part = [0; 1024];
                let n = socket.read(&mut part).unwrap();
                request.extend_from_slice(&part[..n]);
            }
            write!(socket, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
            String::from_utf8(request).unwrap()
        });
        (url, served)
    }

    fn call(url: String) -> Call {
        Call { url, body: "{\"a\":1}".into(), id: "r1/c1".to_owned() }
    }

    #[tokio::test]
    async fn it_says_what_was_asked_and_under_which_name() {
        let (url, served) = serve("204 No Content");
        assert_eq!(post(&call(url)).await, Ok(()));
        let request = served.join().unwrap();
        assert!(
            request.starts_with("POST /hook HTTP/1.1\r\n") && request.contains("idempotency-key: r1/c1"),
            "{request}"
        );
    }

    #[tokio::test]
    async fn it_tells_what_may_pass_from_what_will_not() {
        for (status, again) in [("503 Busy", true), ("429 Slow", true), ("404 Gone", false), ("401 No", false)] {
            let (url, served) = serve(status);
            let answer = post(&call(url)).await;
            assert_eq!(matches!(answer, Err(PlaneError::Unavailable(_))), again, "{status}: {answer:?}");
            served.join().unwrap();
        }
        let nobody = post(&call("http://127.0.0.1:9/".to_owned())).await;
        assert!(matches!(nobody, Err(PlaneError::Unavailable(_))), "{nobody:?}");
    }
}
