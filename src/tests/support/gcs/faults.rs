//! Faults that can be injected into a request.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::http::HttpAnswer;

/// A fault of one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// The request is answered with this status, and not carried out.
    Status(u16),
    /// The connection is reset, and the request is not carried out.
    ResetBefore,
    /// The request is carried out, but the connection is reset before the answer.
    ResetAfter,
    /// The connection is reset in the middle of the answer.
    ResetMidBody,
    /// The connection is closed normally before the end of the answer.
    ShortBody,
    /// The answer is shorter than requested, and consistent in itself.
    ShortAnswer,
    /// A bit of an object's content is flipped; its checksum is that of the original.
    WrongBytes,
    /// Half of the answer is sent. After a pause, the connection is closed.
    Stall(Duration),
    /// The answer is sent in pieces of `bytes`, with a pause after each.
    Trickle { bytes: usize, pause: Duration },
}

/// One fault of each kind, with delays that a test can wait for.
pub const ALL: [Fault; 13] = [
    Fault::Status(429),
    Fault::Status(500),
    Fault::Status(503),
    Fault::Status(401),
    Fault::Status(403),
    Fault::ResetBefore,
    Fault::ResetAfter,
    Fault::ResetMidBody,
    Fault::ShortBody,
    Fault::ShortAnswer,
    Fault::WrongBytes,
    Fault::Stall(Duration::from_secs(4)),
    // an answer of several thousand bytes exceeds the timeout of 2 s that tests set
    Fault::Trickle { bytes: 500, pause: Duration::from_millis(200) },
];

impl Fault {
    /// Whether a run may stop because of this fault: a denial is final, and a checksum mismatch may be detected only
    /// after rows were scored. All other faults must be retried.
    pub fn may_stop(self) -> bool {
        matches!(self, Self::Status(403) | Self::WrongBytes)
    }

    /// Whether the request is carried out despite the fault.
    pub fn is_carried_out(self) -> bool {
        !matches!(self, Self::Status(_) | Self::ResetBefore)
    }

    /// Whether the fault changes `answer`: faults of the body need a body.
    pub fn changes(self, answer: &HttpAnswer) -> bool {
        match self {
            Self::Status(_) | Self::ResetBefore | Self::ResetAfter | Self::ResetMidBody => true,
            Self::WrongBytes => has_checksum(answer) && !answer.body.is_empty(),
            Self::Trickle { bytes, .. } => answer.body.len() > bytes,
            Self::ShortBody | Self::ShortAnswer | Self::Stall(_) => !answer.body.is_empty(),
        }
    }

    /// Send `answer` with this fault. Returns whether the connection stays open.
    pub fn send(self, answer: &HttpAnswer, stream: &mut TcpStream) -> io::Result<bool> {
        let half = answer.body.len() / 2;
        let whole = answer.head(answer.body.len());
        match self {
            Self::Status(status) => {
                let body =
                    format!("<Error><Code>Injected</Code><Message>{status} by schedule</Message></Error>");
                HttpAnswer::xml(status, body).write(stream)?;
                Ok(true)
            }
            Self::ResetBefore | Self::ResetAfter => reset(stream),
            Self::ResetMidBody => {
                stream.write_all(&whole)?;
                stream.write_all(&answer.body[..half])?;
                stream.flush()?;
                // the client must receive the bytes before the reset
                std::thread::sleep(Duration::from_millis(20));
                reset(stream)
            }
            Self::ShortBody => {
                stream.write_all(&whole)?;
                stream.write_all(&answer.body[..half])?;
                Ok(false)
            }
            Self::ShortAnswer => {
                stream.write_all(&answer.head(half))?;
                stream.write_all(&answer.body[..half])?;
                Ok(true)
            }
            Self::WrongBytes => {
                let mut body = answer.body.clone();
                // only objects have a checksum
                if has_checksum(answer)
                    && let Some(byte) = body.get_mut(half)
                {
                    *byte ^= 1;
                }
                stream.write_all(&whole)?;
                stream.write_all(&body)?;
                Ok(true)
            }
            Self::Stall(pause) => {
                stream.write_all(&whole)?;
                stream.write_all(&answer.body[..half])?;
                stream.flush()?;
                std::thread::sleep(pause);
                Ok(false)
            }
            Self::Trickle { bytes, pause } => {
                stream.write_all(&whole)?;
                for piece in answer.body.chunks(bytes) {
                    stream.write_all(piece)?;
                    stream.flush()?;
                    std::thread::sleep(pause);
                }
                Ok(true)
            }
        }
    }
}

fn has_checksum(answer: &HttpAnswer) -> bool {
    answer.headers.iter().any(|(name, _)| *name == "x-goog-hash")
}

/// Close the connection with a reset, which the client sees immediately, as an error.
fn reset(stream: &TcpStream) -> io::Result<bool> {
    rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
    Ok(false)
}
