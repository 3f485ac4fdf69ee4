// Counters as JSON: for Python in the same process, and as a file at exit.
#pragma once
#include <string>

namespace emulated {

std::string report();
void write_report(const std::string& path);

}  // namespace emulated
