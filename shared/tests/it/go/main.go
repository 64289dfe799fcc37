// Speaks hashicorp/yamux for the interop test: it dials the test and then is the client or the
// server of the session, answers on every stream that the other side opens, and as asked opens
// streams of its own. What is said on a stream is in service.rs.
package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

const toTheEnd = ^uint64(0)

func pattern(length uint64) []byte {
	bytes := make([]byte, length)
	for n := range bytes {
		bytes[n] = byte(n*7) ^ byte(n>>8)
	}
	return bytes
}

func checksum(bytes []byte) (sum uint64) {
	for _, b := range bytes {
		sum = sum*31 + uint64(b)
	}
	return sum
}

func check(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// Answers one request. It reads to the FIN before it closes, as the library resets otherwise.
func serve(stream net.Conn) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(stream, head); err != nil {
		stream.Close()
		return
	}
	want, length := binary.BigEndian.Uint64(head), binary.BigEndian.Uint64(head[8:])
	var body []byte
	var err error
	if length == toTheEnd {
		body, err = io.ReadAll(stream)
	} else {
		body = make([]byte, length)
		_, err = io.ReadFull(stream, body)
	}
	check(err)
	binary.BigEndian.PutUint64(head, uint64(len(body)))
	binary.BigEndian.PutUint64(head[8:], checksum(body))
	_, err = stream.Write(append(head, pattern(want)...))
	check(err)
	check(stream.Close())
}

// Asks on a stream of its own. This library reads nothing after Close, so it closes last.
func ask(session *yamux.Session, length, want uint64) {
	stream, err := session.OpenStream()
	check(err)
	body := pattern(length)
	go func() {
		head := make([]byte, 16)
		binary.BigEndian.PutUint64(head, want)
		binary.BigEndian.PutUint64(head[8:], length)
		_, err := stream.Write(append(head, body...))
		check(err)
	}()
	answer := make([]byte, 16+want)
	_, err = io.ReadFull(stream, answer)
	check(err)
	due := make([]byte, 16)
	binary.BigEndian.PutUint64(due, length)
	binary.BigEndian.PutUint64(due[8:], checksum(body))
	if string(answer) != string(due)+string(pattern(want)) {
		check(fmt.Errorf("a wrong answer to %d bytes", length))
	}
	rest, err := io.ReadAll(stream)
	check(err)
	if len(rest) > 0 {
		check(fmt.Errorf("%d bytes too many", len(rest)))
	}
	check(stream.Close())
}

// Arguments: "client" or "server", the address to dial, then "streams length want" any number of
// times. Prints "asked" when all answers are there, and ends when the session does.
func main() {
	connection, err := net.Dial("tcp", os.Args[2])
	check(err)
	config := yamux.DefaultConfig()
	config.LogOutput = os.Stdout
	var session *yamux.Session
	if os.Args[1] == "client" {
		session, err = yamux.Client(connection, config)
	} else {
		session, err = yamux.Server(connection, config)
	}
	check(err)
	go func() {
		for {
			stream, err := session.Accept()
			if err != nil {
				return
			}
			go serve(stream)
		}
	}()
	_, err = session.Ping()
	check(err)
	var asking sync.WaitGroup
	for args := os.Args[3:]; len(args) > 0; args = args[3:] {
		var numbers [3]uint64
		for n := range numbers {
			numbers[n], err = strconv.ParseUint(args[n], 10, 64)
			check(err)
		}
		for n := uint64(0); n < numbers[0]; n++ {
			asking.Add(1)
			go func() {
				defer asking.Done()
				ask(session, numbers[1], numbers[2])
			}()
		}
	}
	asking.Wait()
	fmt.Println("asked")
	select {
	case <-session.CloseChan():
	case <-time.After(time.Minute):
		check(fmt.Errorf("the session does not end"))
	}
	if open := session.NumStreams(); open > 0 {
		check(fmt.Errorf("%d streams left", open))
	}
}
