import static org.apache.beam.sdk.values.TypeDescriptors.strings;

import com.fasterxml.jackson.databind.ObjectMapper;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.apache.beam.sdk.Pipeline;
import org.apache.beam.sdk.io.TextIO;
import org.apache.beam.sdk.options.PipelineOptionsFactory;
import org.apache.beam.sdk.transforms.FlatMapElements;
import org.apache.beam.sdk.transforms.InferableFunction;
import org.apache.beam.sdk.transforms.MapElements;
import org.apache.beam.sdk.transforms.Sum;
import org.apache.beam.sdk.util.construction.External;
import org.apache.beam.sdk.values.KV;
import org.apache.beam.sdk.values.PCollection;

/**
 * Scores images with sluice on any runner of Beam, and counts the rows by status. The arguments are those of score.py:
 * URIS PIPELINE EXPANSION_SERVICE COUNTS [OPTION OF THE RUNNER]...
 */
public final class Score {
    public static void main(String[] arguments) throws Exception {
        String[] options = Arrays.copyOfRange(arguments, 4, arguments.length);
        Pipeline pipeline = Pipeline.create(PipelineOptionsFactory.fromArgs(options).create());
        String file = Path.of(arguments[1]).toAbsolutePath().toString();
        byte[] payload = new ObjectMapper().writeValueAsBytes(Map.of("path", file));
        PCollection<String> uris = pipeline.apply(TextIO.read().from(arguments[0]));
        PCollection<String> reports =
                uris.apply(External.of("sluice:transform:score:v1", payload, arguments[2]));
        reports.apply(FlatMapElements.via(new RowsByStatus()))
                .apply(Sum.longsPerKey())
                .apply(MapElements.into(strings()).via(count -> count.getKey() + " " + count.getValue()))
                .apply(TextIO.write().to(arguments[3]).withoutSharding());
        pipeline.run().waitUntilFinish();
    }

    /** The statuses of a report, each with its rows. */
    private static final class RowsByStatus extends InferableFunction<String, List<KV<String, Long>>> {
        @Override
        public List<KV<String, Long>> apply(String report) throws Exception {
            List<KV<String, Long>> rows = new ArrayList<>();
            new ObjectMapper()
                    .readTree(report)
                    .get("rows_by_status")
                    .fields()
                    .forEachRemaining(entry -> rows.add(KV.of(entry.getKey(), entry.getValue().asLong())));
            return rows;
        }
    }
}
